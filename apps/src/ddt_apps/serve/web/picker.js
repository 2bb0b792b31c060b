// A place for a picture of the visitor's: chosen, dropped, pasted, or drawn before.

import { last } from "./kept.js";
import { paint } from "./strip.js";

const SIDE = 1024; // pixels to which larger pictures are brought, as the model's are far smaller
const BYTES = 4_000_000;

export class Picker {
  /** @param changed is told of each change; with `ids`, the ids of a picture are asked for and shown. */
  constructor(place, model, title, { changed = () => {}, ids = false } = {}) {
    place.append(document.getElementById("picker-template").content.cloneNode(true));
    Object.assign(this, { model, title, changed, wantsIds: ids, picture: null });
    this.group = place.querySelector(".picker");
    [this.image, this.empty, this.strip, this.status, this.remove, this.latest] = [
      "img", ".empty", ".strip", ".status", ".remove", ".last",
    ].map((each) => this.group.querySelector(each));
    this.group.querySelector(".title").textContent = title;
    this.group.setAttribute("aria-label", title);
    const file = this.group.querySelector("input");
    file.setAttribute("aria-label", `${title}: choose a file`);
    file.addEventListener("change", () => file.files[0] && this.read(file.files[0]).then(() => (file.value = "")));
    this.remove.addEventListener("click", () => this.set(null));
    this.latest.addEventListener("click", () => this.fromKept(last(model)));
    this.group.addEventListener("dragover", (event) => event.preventDefault());
    this.group.addEventListener("drop", (event) => {
      event.preventDefault();
      if (event.dataTransfer.files[0]) this.read(event.dataTransfer.files[0]);
    });
    this.refresh();
  }

  /** Look again whether there is a drawing to take. */
  refresh() {
    this.latest.hidden = !last(this.model);
  }

  async read(file) {
    try {
      await this.set({ url: await asUrl(file), alt: file.name || "a picture" });
    } catch {
      this.say(`${file.name || "This"} is no picture that this browser can read.`, true);
    }
  }

  async fromKept(entry) {
    try {
      const [url] = await this.model.fromIds([entry.ids], { steps: entry.steps });
      await this.set({ url, ids: entry.ids, alt: entry.prompt });
    } catch (error) {
      this.say(error.message, true);
    }
  }

  /** Take {url, alt, ids}, or null: nothing. */
  async set(picture) {
    this.picture = picture;
    this.say("");
    this.image.hidden = this.remove.hidden = !picture;
    this.empty.hidden = Boolean(picture);
    this.strip.hidden = true;
    if (picture) {
      this.image.src = picture.url;
      this.image.alt = picture.alt;
      this.image.onload = () => this.image.classList.toggle("px", this.image.naturalWidth < 128);
    }
    if (picture && this.wantsIds) {
      try {
        picture.ids ??= await this.model.toIds(picture.url);
        if (this.picture === picture) paint(this.strip, picture.ids);
      } catch (error) {
        this.picture = null;
        this.say(error.message, true);
      }
    }
    this.changed(this.picture);
  }

  say(words, bad = false) {
    this.status.textContent = words;
    this.status.classList.toggle("bad", bad);
  }
}

/** Let pasted pictures go to the first empty picker of a panel, or else to its first. */
export function pasteInto(panel, ...pickers) {
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
    if (!file || panel.hidden) return;
    event.preventDefault();
    (pickers.find((each) => !each.picture) ?? pickers[0]).read(file);
  });
}

/** Read a file as a data URL; a large picture is made smaller, upright as its camera says. */
async function asUrl(file) {
  const picture = await createImageBitmap(file);
  const scale = SIDE / Math.max(picture.width, picture.height);
  if (scale >= 1 && file.size < BYTES && /^image\/(png|jpeg|webp)$/.test(file.type)) {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = reject;
      reader.readAsDataURL(file);
    });
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [picture.width, picture.height].map((side) => Math.round(side * Math.min(1, scale)) || 1);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}
