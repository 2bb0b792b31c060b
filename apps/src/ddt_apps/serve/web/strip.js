// The ids of a picture as a strip of colours, from coarse (left) to fine; equal ids have equal colours.

const GOLDEN = 137.508; // degrees, so that neighbouring ids differ

/** Paint ids, in tokenizer order (finest first); those outside of [from, to), counted from the coarsest, are faint. */
export function paint(canvas, ids, from = 0, to = ids.length) {
  canvas.width = ids.length;
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, ids.length, 1);
  ids.toReversed().forEach((id, place) => {
    context.globalAlpha = place >= from && place < to ? 1 : 0.18;
    context.fillStyle = `hsl(${(id * GOLDEN) % 360} 62% ${42 + ((id * 7) % 5) * 5}%)`;
    context.fillRect(place, 0, 1, 1);
  });
  const shown = to - from < ids.length ? `, of which ${from + 1} to ${to} stand out` : "";
  canvas.setAttribute("aria-label", `${ids.length} ids from coarse to fine${shown}`);
  canvas.hidden = false;
}
