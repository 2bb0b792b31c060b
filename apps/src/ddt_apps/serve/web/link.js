// Settings in the address, behind #: whoever opens it sees the same; the server never does.

const NUMBERS = ["seed", "guidance", "temperature", "steps", "keep"];

export function fromAddress() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const name of NUMBERS) {
    const number = Number(given[name]);
    if (given[name] === "" || !Number.isFinite(number)) delete given[name];
    else given[name] = number;
  }
  return given;
}

/** Write settings into the address; null takes one out. */
export function toAddress(changes) {
  const all = { ...fromAddress(), ...changes };
  const left = Object.entries(all).filter(([, value]) => value !== null && value !== undefined && value !== "");
  history.replaceState(null, "", `#${new URLSearchParams(left)}`);
}

/** Copy the address; returns what to say. */
export async function copyAddress() {
  try {
    await navigator.clipboard.writeText(location.href);
    return "Link copied.";
  } catch {
    return "Copy the address of this page: it holds all settings."; // without TLS browsers keep the clipboard shut
  }
}
