// Gallery: what this browser keeps, drawn again from ids.

import { forget, forgetAll, kept } from "./kept.js";

const AT_ONCE = 24; // shown, until more are asked for
const BATCH = 16; // pictures of a request

export function gallery(model, go) {
  const [about, clear, status, list] = ["gallery-about", "gallery-clear", "gallery-status", "gallery-list"].map((id) =>
    document.getElementById(id),
  );
  const urls = new Map(); // by time and ids
  let most = AT_ONCE;

  const more = document.createElement("button");
  more.type = "button";
  more.textContent = "Show more";
  more.addEventListener("click", () => {
    most += AT_ONCE;
    shown();
  });
  clear.addEventListener("click", () => {
    if (!confirm("Forget all pictures of this model that are kept in this browser?")) return;
    forgetAll(model);
    shown();
  });

  async function shown() {
    const entries = kept(model);
    about.textContent = entries.length ? `${entries.length} kept, newest first.` : "Nothing yet: what you draw is kept here.";
    clear.hidden = !entries.length;
    const visible = entries.slice(0, most);
    list.replaceChildren(...visible.map(item));
    more.remove();
    if (entries.length > most) list.after(more);
    try {
      await draw(visible.filter((entry) => !urls.has(name(entry))));
      status.textContent = "";
    } catch (error) {
      status.textContent = error.message;
    }
  }

  /** Draw entries, so many at once as have equally many ids and the same steps. */
  async function draw(entries) {
    const groups = Object.groupBy(entries, (entry) => `${entry.ids.length} ${entry.steps}`);
    for (const group of Object.values(groups)) {
      for (let i = 0; i < group.length; i += BATCH) {
        const some = group.slice(i, i + BATCH);
        const drawn = await model.fromIds(some.map((entry) => entry.ids), { steps: some[0].steps });
        some.forEach((entry, j) => {
          urls.set(name(entry), drawn[j]);
          const image = list.querySelector(`[data-name="${name(entry)}"]`);
          if (image) image.src = drawn[j];
        });
      }
    }
  }

  function item(entry) {
    const [line, open, image, words, remove] = ["li", "button", "img", "p", "button"].map((each) => document.createElement(each));
    image.alt = entry.prompt;
    image.dataset.name = name(entry);
    image.classList.toggle("px", model.tiny);
    if (urls.has(name(entry))) image.src = urls.get(name(entry));
    open.type = remove.type = "button";
    open.className = "thumb";
    open.append(image);
    open.addEventListener("click", () => {
      const url = urls.get(name(entry));
      if (!url) return;
      if (entry.edited) go.edit({ url, ids: entry.ids, alt: entry.prompt });
      else go.draw(entry, url);
    });
    words.textContent = entry.prompt;
    remove.textContent = "Forget";
    remove.setAttribute("aria-label", `Forget: ${entry.prompt}`);
    remove.addEventListener("click", () => {
      forget(entry);
      shown();
    });
    line.append(open, words, remove);
    return line;
  }

  return { shown };
}

function name(entry) {
  return `${entry.at}-${entry.ids[0]}-${entry.ids.at(-1)}`;
}
