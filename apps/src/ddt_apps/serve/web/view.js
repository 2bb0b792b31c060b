// A picture with its ids: it sharpens while it is drawn, and a slider draws it again from its coarsest ids.

import { paint } from "./strip.js";
import { newest } from "./work.js";

export class View {
  /** @param kept is told when the slider moves; `empty` says what will stand here. */
  constructor(place, model, { kept = () => {}, empty = "", fail = () => {} } = {}) {
    place.append(document.getElementById("view-template").content.cloneNode(true));
    this.model = model;
    this.figure = place.querySelector(".view");
    [this.image, this.empty, this.strip, this.label, this.caption, this.actions] = [
      "img", ".empty", ".strip", ".keep", "figcaption", ".actions",
    ].map((each) => this.figure.querySelector(each));
    [this.said, this.slider] = [this.label.querySelector(".said"), this.label.querySelector("input")];
    this.empty.textContent = empty;
    this.image.classList.toggle("px", model.tiny);
    this.drawn = new Map();
    const again = newest((signal, keep) => this.again(signal, keep));
    this.slider.addEventListener("input", () => {
      kept(this.keep);
      again(this.keep).catch(fail);
    });
  }

  get keep() {
    return Number(this.slider.value);
  }

  /** What is to be seen, as a picture for others to take. */
  get shown() {
    const whole = this.keep === this.picture.ids.length;
    return { url: this.image.src, alt: this.picture.alt, ids: whole ? this.picture.ids : undefined };
  }

  /** Show a picture of which there are no ids yet, or not all. */
  partial(url, alt) {
    this.image.src = url;
    this.image.alt = alt;
    this.image.hidden = false;
    this.empty.hidden = true;
  }

  /** Show a whole picture {url, ids, alt, steps}, from its `keep` coarsest ids where that is given. */
  async show(picture, keep = picture.ids.length) {
    this.picture = picture;
    this.drawn = new Map([[picture.ids.length, picture.url]]);
    this.partial(picture.url, picture.alt);
    this.slider.max = picture.ids.length;
    this.slider.value = keep;
    this.label.hidden = picture.ids.length < 2;
    this.actions.hidden = false;
    await this.again(undefined, this.keep);
  }

  async again(signal, keep) {
    const { ids, alt, steps } = this.picture;
    const words = `${keep} of ${ids.length}`;
    this.said.textContent = words;
    this.slider.setAttribute("aria-valuetext", words);
    paint(this.strip, ids, 0, keep);
    if (!this.drawn.has(keep)) this.drawn.set(keep, (await this.model.fromIds([ids], { keep, steps, signal }))[0]);
    if (this.keep === keep && this.picture.ids === ids)
      this.partial(this.drawn.get(keep), keep < ids.length ? `${alt} (from ${words} ids)` : alt);
  }

  /** Add a button. */
  action(words, act) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.addEventListener("click", act);
    this.actions.append(button);
    return button;
  }

  /** Add a button that saves the picture as it is shown. */
  savable() {
    this.action("Save", () => {
      const link = document.createElement("a");
      link.href = this.image.src;
      link.download = `${this.picture.alt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "picture"}.png`;
      link.click();
    });
    return this;
  }
}
