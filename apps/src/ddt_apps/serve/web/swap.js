// Swap ids: two pictures exchange a range of their ids, and both are drawn again.

import { EXAMPLES } from "./draw.js";
import { keep, kept } from "./kept.js";
import { Picker, pasteInto } from "./picker.js";
import { paint } from "./strip.js";
import { View } from "./view.js";
import { newest, working } from "./work.js";

export function swap(model) {
  const [panel, examples, status, range, from, to, fromSaid, toSaid] = [
    "swap", "swap-draw", "swap-status", "swap-range", "swap-from", "swap-to", "swap-from-said", "swap-to-said",
  ].map((id) => document.getElementById(id));
  const [a, b] = ["a", "b"].map(
    (side) => new Picker(document.getElementById(`swap-${side}`), model, `Picture ${side.toUpperCase()}`, { ids: true, changed }),
  );
  const [first, second] = ["first", "second"].map(
    (side) => new View(document.getElementById(`swap-${side}`), model, { empty: "The exchange appears here." }),
  );
  pasteInto(panel, a, b);
  from.max = to.max = model.count;
  choose(0, 0.5);

  const exchange = newest(async (signal, start, stop) => {
    const [one, other] = [a.picture, b.picture];
    const rows = [exchanged(one.ids, other.ids, start, stop), exchanged(other.ids, one.ids, start, stop)];
    const urls = await model.fromIds(rows, { signal });
    const words = start + 1 === stop ? `id ${stop}` : `ids ${start + 1} to ${stop}`;
    [[first, one, other, "A", "B"], [second, other, one, "B", "A"]].forEach(([view, own, giver, name, from], i) => {
      view.partial(urls[i], `${own.alt}, with ${words} of ${giver.alt}`);
      view.caption.textContent = `${name} with ${words} of ${from}`;
      paint(view.strip, rows[i], start, stop);
    });
    status.textContent = "";
  });

  function changed() {
    range.disabled = !(a.picture?.ids && b.picture?.ids);
    const [start, stop] = [Number(from.value) - 1, Number(to.value)];
    for (const each of [a, b]) if (each.picture?.ids) paint(each.strip, each.picture.ids, start, stop);
    if (!range.disabled) exchange(start, stop).catch((error) => (status.textContent = error.message));
  }

  function choose(low, high) {
    from.value = Math.round(low * model.count) + 1;
    to.value = Math.max(Math.round(high * model.count), Number(from.value));
    tell();
  }

  function tell() {
    fromSaid.textContent = `${from.value} of ${model.count}, ${from.value === "1" ? "the coarsest" : "counted from the coarsest"}`;
    toSaid.textContent = `${to.value}${Number(to.value) === model.count ? ", the finest" : ""}`;
  }

  for (const each of [from, to])
    each.addEventListener("input", () => {
      const [low, high] = [Number(from.value), Number(to.value)];
      if (low > high) (each === from ? to : from).value = each.value;
      tell();
      changed();
    });
  for (const each of range.querySelectorAll("[data-share]"))
    each.addEventListener("click", () => {
      choose(...each.dataset.share.split(" ").map(Number));
      changed();
    });

  examples.addEventListener("click", () =>
    working({ button: examples, status, panel }, async (how) => {
      how.say("Drawing ...");
      const show = () => {};
      const drawn = await Promise.all(
        EXAMPLES.slice(0, 2).map(async (prompt) => ({ prompt, ...(await model.draw({ prompt }, { ...how, show })) })),
      );
      for (const [i, { prompt, url, ids, seed }] of drawn.entries()) {
        keep(model, { prompt, ids, seed });
        await [a, b][i].set({ url, ids, alt: prompt });
      }
      for (const each of [a, b]) each.refresh();
    }),
  );

  return {
    take: (picture) => (a.picture ? b : a).set({ ...picture }),
    shown: async () => {
      for (const each of [a, b]) each.refresh();
      const entries = kept(model);
      if (a.picture || b.picture || entries.length < 2) return;
      await Promise.all([a.fromKept(entries[0]), b.fromKept(entries[1])]);
    },
  };
}

/** Return ids with those at places [start, stop), counted from the coarsest (which come last), of another picture. */
function exchanged(own, other, start, stop) {
  return own.map((id, i) => (own.length - 1 - i >= start && own.length - 1 - i < stop ? other[i] : id));
}
