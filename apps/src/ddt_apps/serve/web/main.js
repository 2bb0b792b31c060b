// Begins: asks which model is served, and sets the tabs up for it.

import { rememberKey } from "./api.js";
import { chat } from "./chat.js";
import { compare } from "./compare.js";
import { draw } from "./draw.js";
import { edit } from "./edit.js";
import { gallery } from "./gallery.js";
import { fromAddress, toAddress } from "./link.js";
import { Model } from "./model.js";
import { swap } from "./swap.js";
import { tabs } from "./tabs.js";

const [about, trouble, key, main] = ["about", "trouble", "key", "main"].map((id) => document.getElementById(id));

addEventListener("unauthorized", () => key.open || key.showModal());
document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  rememberKey(document.getElementById("key-value").value.trim());
  location.reload();
});
addEventListener("hashchange", () => location.reload()); // another link was opened here

try {
  begin(await Model.served());
} catch (error) {
  about.textContent = "";
  trouble.textContent = `${error.message} Then reload this page.`;
  trouble.hidden = false;
}

function begin(model) {
  document.title = `DDT: ${model.name}`;
  about.textContent = model.about;
  const go = {}; // where a picture can be taken to: go.edit(picture) and so on
  const open = tabs(document.getElementById("tabs"), (name) => {
    toAddress({ tab: name === "draw" ? null : name });
    go.shown[name]?.();
  });
  const given = fromAddress();
  go.shown = {};
  for (const [name, set] of Object.entries({ draw, edit, chat, swap, compare, gallery })) {
    const { take, shown } = set(model, go);
    go.shown[name] = shown;
    go[name] = (...what) => {
      open(name);
      return take?.(...what);
    };
  }
  if (given.prompt) go.shared(given);
  open(given.tab ?? "draw");
  main.inert = false;
}
