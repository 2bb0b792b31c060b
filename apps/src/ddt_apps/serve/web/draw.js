// Draw: a prompt, a picture that sharpens while its ids are written, and a slider over the ids kept.

import { keep } from "./kept.js";
import { copyAddress, toAddress } from "./link.js";
import { Settings } from "./settings.js";
import { View } from "./view.js";
import { enterSends, working } from "./work.js";

export const EXAMPLES = ["a red fox", "two yellow stars", "a blue fish left of a bell"];

export function draw(model, go) {
  const [form, prompt, examples, button, status, more, place] = [
    "draw-form", "draw-prompt", "draw-examples", "draw-go", "draw-status", "draw-more", "draw-view",
  ].map((id) => document.getElementById(id));
  const say = (words) => (status.textContent = words);
  const settings = new Settings(document.getElementById("draw-settings"), { ...model.defaults.draw, steps: model.steps });
  const view = new View(place, model, {
    empty: `The picture appears here${model.coarseFirst ? ", coarse at first" : ""}.`,
    kept: (count) => toAddress({ keep: count < model.count ? count : null }),
    fail: (error) => say(error.message),
  });
  view.savable();
  view.action("Copy link", async () => say(await copyAddress()));
  if (model.tasks.includes("edit")) view.action("Edit", () => go.edit(view.shown));
  view.action("Swap ids", () => go.swap(view.picture));

  for (const words of EXAMPLES) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = words;
    chip.addEventListener("click", () => {
      prompt.value = words;
      if (!button.stop) form.requestSubmit();
    });
    examples.append(chip);
  }
  enterSends(prompt);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    prompt.value = prompt.value.trim() || prompt.placeholder;
    begin(settings.values);
  });

  function begin(chosen, shown) {
    const words = prompt.value;
    return working({ button, status, panel: view.figure }, async (how) => {
      view.figure.scrollIntoView({ block: "nearest" }); // on a phone it may stand below
      how.say(model.coarseFirst ? "Waiting for the first ids ..." : "Drawing ...");
      const begun = performance.now();
      const show = (url, count) => {
        view.partial(url, `${words} (${count} of ${model.count} ids)`);
        how.say(`${count} of ${model.count} ids ...`);
      };
      const { url, ids, seed } = await model.draw({ ...chosen, prompt: words }, { ...how, show });
      const entry = { ...chosen, prompt: words, ids, seed };
      const seconds = ((performance.now() - begun) / 1000).toFixed(1);
      toAddress({ guidance: null, temperature: null, steps: null, ...chosen, prompt: words, seed, keep: shown });
      keep(model, entry);
      await open(entry, url, shown);
      return `${ids.length} ids in ${seconds} s`;
    });
  }

  async function open(entry, url, shown) {
    view.caption.textContent = `\u201c${entry.prompt}\u201d, seed ${entry.seed}`;
    await view.show({ url, ids: entry.ids, alt: entry.prompt, steps: entry.steps }, shown);
  }

  /** Do what a link says: fill in its settings and, where it has a seed, draw. */
  go.shared = (given) => {
    const { seed, keep: shown, ...rest } = given;
    prompt.value = given.prompt;
    settings.values = rest;
    more.open = Object.keys(settings.values).length > 0;
    const kept = shown >= 1 && shown < model.count ? Math.round(shown) : undefined;
    if (seed !== undefined && !given.tab) begin({ ...settings.values, seed }, kept);
  };

  return {
    /** Open a picture of before. */
    take: async (entry, url) => {
      prompt.value = entry.prompt;
      const { prompt: words, seed, guidance = null, temperature = null, steps = null } = entry;
      settings.values = entry.settings ?? { guidance, temperature, steps };
      toAddress({ prompt: words, seed, guidance, temperature, steps, keep: null });
      await open(entry, url);
      say("");
    },
  };
}
