// The model that is served, and what can be asked of it in one step.

import { ask, events, Refused } from "./api.js";

const PARTIAL = 3; // pictures on the way, from an eighth, a quarter and half of the ids

export class Model {
  constructor({ id, ddt }) {
    this.name = id;
    this.size = ddt.image_size;
    this.count = ddt.num_tokens;
    this.steps = ddt.num_steps;
    this.fingerprint = ddt.fingerprint;
    this.tasks = ddt.tasks;
    this.defaults = ddt.defaults;
    this.coarseFirst = ddt.visual_order === "coarse_to_fine"; // so that it can be seen on its way
    this.tiny = this.size < 128; // its pictures are enlarged without smoothing
  }

  static async served(how) {
    return new Model((await ask("v1/models", null, how)).data[0]);
  }

  get about() {
    return `${this.name}: ${this.size} px, ${this.count} ids a picture`;
  }

  /** Draw or edit, and hand over pictures on the way with how many ids they show; returns {url, ids, seed}. */
  async picture(path, settings, { show, ...how }) {
    const asked = { ...settings, partial_images: PARTIAL };
    asked.seed ??= Math.floor(Math.random() * 2 ** 31);
    for await (const event of events(path, asked, how)) {
      const url = `data:image/png;base64,${event.b64_json}`;
      if (event.type.endsWith("completed")) return { url, ids: event.ids, seed: asked.seed };
      show(url, Math.max(1, this.count >> (PARTIAL - event.partial_image_index)));
    }
    throw new Refused("The answer ended before the picture was whole.");
  }

  draw(settings, how) {
    return this.picture("v1/images/generations", settings, how);
  }

  edit(settings, how) {
    return this.picture("v1/images/edits", settings, how);
  }

  /** Draw pictures from ids, of which the `keep` coarsest; returns their urls. */
  async fromIds(rows, { keep, steps, ...how } = {}) {
    const answer = await ask("v1/detokenize", { ids: rows, keep_tokens: keep, steps, response_format: "url" }, how);
    return answer.data.map((each) => each.url);
  }

  async toIds(url, how) {
    return (await ask("v1/tokenize", { image: url }, how)).ids[0];
  }
}
