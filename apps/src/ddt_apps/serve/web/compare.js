// Compare: one prompt drawn with two settings, side by side.

import { keep } from "./kept.js";
import { Settings } from "./settings.js";
import { View } from "./view.js";
import { enterSends, working } from "./work.js";

export function compare(model) {
  const [form, prompt, button, status] = ["compare-form", "compare-prompt", "compare-go", "compare-status"].map((id) =>
    document.getElementById(id),
  );
  const fail = (error) => (status.textContent = error.message);
  const sides = ["a", "b"].map((side) => ({
    settings: new Settings(document.getElementById(`compare-${side}-settings`), { ...model.defaults.draw, steps: model.steps }),
    view: new View(document.getElementById(`compare-${side}`), model, { empty: side === "a" ? "Left" : "Right", fail }),
  }));
  sides[1].settings.values = { guidance: 2 * model.defaults.draw.guidance };
  for (const { view } of sides) view.savable();

  enterSends(prompt);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const words = (prompt.value = prompt.value.trim() || prompt.placeholder);
    working({ button, status, panel: form }, async (how) => {
      how.say("Drawing both ...");
      const common = Math.floor(Math.random() * 2 ** 31); // so that only the settings differ
      const drawn = await Promise.all(
        sides.map(async ({ settings, view }) => {
          const chosen = { seed: common, ...settings.values };
          const show = (url, count) => view.partial(url, `${words} (${count} of ${model.count} ids)`);
          const { url, ids, seed } = await model.draw({ ...chosen, prompt: words }, { ...how, show });
          keep(model, { ...chosen, prompt: words, ids, seed });
          await view.show({ url, ids, alt: words, steps: chosen.steps });
          view.caption.textContent = `seed ${seed}`;
          return ids;
        }),
      );
      const same = drawn[0].filter((id, i) => id === drawn[1][i]).length;
      return `${same} of ${model.count} ids are the same`;
    });
  });

  return {
    shown: () => (prompt.value ||= document.getElementById("draw-prompt").value),
  };
}
