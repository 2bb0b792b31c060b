// Work that takes its time: a button begins it and stops it, Esc stops all, and a line says how it goes.

const running = new Set();

addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const each of running) each.abort();
});

/**
 * Do something once, with a button that stops it meanwhile.
 *
 * `work` gets {signal, say}: the signal aborts its requests, which frees the server, and `say` writes the status line.
 * What it returns becomes the last words of that line; what it throws is told there.
 */
export async function working({ button, status, panel }, work) {
  if (button.stop) return button.stop.abort();
  const stop = (button.stop = new AbortController());
  const words = button.textContent;
  const say = (text) => {
    status.classList.remove("bad");
    status.textContent = text;
  };
  running.add(stop);
  button.textContent = "Stop";
  panel?.setAttribute("aria-busy", "true");
  try {
    say((await work({ signal: stop.signal, say })) ?? "");
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message);
    status.classList.toggle("bad", error.name !== "AbortError");
  } finally {
    running.delete(stop);
    delete button.stop;
    button.textContent = words;
    panel?.removeAttribute("aria-busy");
  }
}

/** Let Enter in a text field send its form, unless that is at work, and Shift+Enter begin a line. */
export function enterSends(field) {
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!field.form.querySelector(".go").stop) field.form.requestSubmit();
  });
}

/** Return a function that does the newest of what it is asked for, and drops what was asked for before. */
export function newest(work) {
  let last = null;
  return async (...asked) => {
    last?.abort();
    const own = (last = new AbortController());
    try {
      await work(own.signal, ...asked);
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
  };
}
