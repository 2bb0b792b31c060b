// The server's API: requests that wait where it is busy, streams of events, and failures in words.

const KEY = "ddt-key";
const TRIES = 5; // of a request that is sent away because the queue is full

export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function rememberKey(key) {
  sessionStorage.setItem(KEY, key);
}

function keyOfTab() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // of a browser that keeps nothing
  }
}

/** Send a request (GET without a body) and return its answer; `say` is told in words while it waits. */
export async function send(path, body, { signal, say = () => {} } = {}) {
  const key = keyOfTab();
  const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
  const asked = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal };
  for (let left = TRIES; ; left--) {
    const answer = await reached(path, asked);
    if (answer.ok) return answer;
    const message = await wordsOf(answer);
    if (answer.status === 401) dispatchEvent(new Event("unauthorized"));
    if (answer.status !== 429 || left === 1) throw new Refused(message, answer.status);
    await pause(Number(answer.headers.get("Retry-After")) || 1, signal, say);
  }
}

export async function ask(path, body, how) {
  return (await send(path, body, how)).json();
}

async function reached(path, asked) {
  try {
    return await fetch(path, asked);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached. Is it still running?");
  }
}

async function wordsOf(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answered with status ${answer.status}.`;
  }
}

async function pause(seconds, signal, say) {
  for (let left = seconds; left > 0; left--) {
    say(`The server is busy; trying again in ${left} s.`);
    await new Promise((resolve, reject) => {
      setTimeout(resolve, 1000);
      signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
    });
  }
}

/** Yield what the server-sent events of an answer hold, as they come. */
export async function* events(path, body, how) {
  const answer = await send(path, { ...body, stream: true }, how);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await cutOff(reader.read());
    if (done) return;
    const blocks = (text + value).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const data = block.slice(block.indexOf("data: ") + 6);
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Refused(event.error.message);
      yield event;
    }
  }
}

async function cutOff(read) {
  try {
    return await read;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The connection broke off before the answer was whole.");
  }
}
