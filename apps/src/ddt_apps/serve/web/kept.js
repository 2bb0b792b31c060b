// What was drawn, as ids and settings, kept in this browser; pictures are drawn again from them.

const PLACE = "ddt-gallery";
const MOST = 200;

function all() {
  try {
    return JSON.parse(localStorage.getItem(PLACE)) ?? [];
  } catch {
    return []; // of a browser that keeps nothing, or of another's words in our place
  }
}

function write(entries) {
  try {
    localStorage.setItem(PLACE, JSON.stringify(entries.slice(0, MOST)));
  } catch {
    // full, or not allowed: the gallery is a convenience
  }
}

/** Return what this model drew, newest first. */
export function kept(model) {
  return all().filter((each) => each.of === model.fingerprint);
}

export function last(model) {
  return kept(model)[0];
}

/** Keep {prompt, ids, seed, ...settings}; the same picture once. */
export function keep(model, entry) {
  const [own, name] = [{ ...entry, of: model.fingerprint, at: Date.now() }, (each) => `${each.of} ${each.prompt} ${each.ids}`];
  write([own, ...all().filter((each) => name(each) !== name(own))]);
}

export function forget(entry) {
  write(all().filter((each) => each.at !== entry.at || each.of !== entry.of));
}

export function forgetAll(model) {
  write(all().filter((each) => each.of !== model.fingerprint));
}
