// Edit: change a picture as a sentence says, or ask about it.

import { events } from "./api.js";
import { keep } from "./kept.js";
import { Picker, pasteInto } from "./picker.js";
import { Settings } from "./settings.js";
import { View } from "./view.js";
import { enterSends, working } from "./work.js";

export function edit(model, go) {
  const [panel, form, prompt, button, asking, status, answer, again, unable] = [
    "edit", "edit-form", "edit-prompt", "edit-go", "edit-ask", "edit-status", "edit-answer", "edit-again", "edit-unable",
  ].map((id) => document.getElementById(id));
  const able = model.tasks.includes("edit");
  const settings = new Settings(document.getElementById("edit-settings"), { ...model.defaults.edit, steps: model.steps });
  const picker = new Picker(document.getElementById("edit-picture"), model, "The picture");
  pasteInto(panel, picker);
  const fail = (error) => (status.textContent = error.message);
  const view = new View(document.getElementById("edit-view"), model, { empty: "The changed picture appears here.", fail });
  view.savable().action("Swap ids", () => go.swap(view.picture));
  unable.hidden = able;
  button.disabled = !able;
  if (!able) asking.textContent = "Describe it";

  enterSends(prompt);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const words = (prompt.value = prompt.value.trim() || prompt.placeholder);
    if (!ready()) return;
    const chosen = settings.values;
    answer.hidden = true;
    working({ button, status, panel: view.figure }, async (how) => {
      how.say(model.coarseFirst ? "Waiting for the first ids ..." : "Drawing ...");
      const show = (url, count) => {
        view.partial(url, `${words} (${count} of ${model.count} ids)`);
        how.say(`${count} of ${model.count} ids ...`);
      };
      const { url, ids, seed } = await model.edit({ ...chosen, prompt: words, image: picker.picture.url }, { ...how, show });
      keep(model, { ...chosen, prompt: words, ids, seed, edited: true });
      await view.show({ url, ids, alt: words, steps: chosen.steps });
      view.caption.textContent = `\u201c${words}\u201d`;
      again.hidden = false;
    });
  });

  asking.addEventListener("click", () => {
    const question = prompt.value.trim();
    if (!ready()) return;
    if (able && !question) return fail(new Error("Write a question first."));
    const content = [{ type: "image_url", image_url: { url: picker.picture.url } }];
    if (able) content.push({ type: "text", text: question });
    const body = { messages: [{ role: "user", content }], modalities: ["text"] };
    working({ button: asking, status }, async (how) => {
      how.say("Reading the picture ...");
      let text = "";
      for await (const event of events("v1/chat/completions", body, how)) text += event.choices[0]?.delta.content ?? "";
      const asked = document.createElement("small");
      asked.textContent = able ? question : "";
      answer.replaceChildren(asked, text.trim() || "(the model says nothing)");
      answer.hidden = false;
    });
  });

  again.addEventListener("click", () => picker.set(view.shown));

  function ready() {
    if (!picker.picture) fail(new Error("Choose a picture first: a file, one from the clipboard, or the last drawn."));
    return Boolean(picker.picture);
  }

  return {
    take: (picture) => picker.set(picture),
    shown: () => picker.refresh(),
  };
}
