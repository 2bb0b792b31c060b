// Fields for the settings of a drawing; one left empty is the server's own.

const FIELDS = {
  seed: { label: "Seed", hint: "random", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
  guidance: { label: "Guidance", min: 0, max: 100, step: "any" },
  temperature: { label: "Temperature", min: 0, max: 10, step: "any" },
  steps: { label: "Steps", min: 1, max: 100, step: 1 },
};

export class Settings {
  /** @param defaults is what the server does by itself: {guidance, temperature, steps}. */
  constructor(place, defaults) {
    this.fields = {};
    for (const [name, { label, hint, ...range }] of Object.entries(FIELDS)) {
      const [line, field] = [document.createElement("label"), document.createElement("input")];
      Object.assign(field, { type: "number", inputMode: "decimal", placeholder: hint ?? defaults[name] ?? "", ...range });
      field.dataset.name = name;
      line.append(label, field);
      place.append(line);
      this.fields[name] = field;
    }
  }

  /** What is filled in, as numbers. */
  get values() {
    const filled = Object.entries(this.fields).filter(([, field]) => field.value !== "");
    return Object.fromEntries(filled.map(([name, field]) => [name, Number(field.value)]));
  }

  set values(given) {
    for (const [name, field] of Object.entries(this.fields)) field.value = given[name] ?? "";
  }
}
