// Chat: text and pictures, both ways.

import { events } from "./api.js";
import { Picker, pasteInto } from "./picker.js";
import { enterSends, working } from "./work.js";

export function chat(model) {
  const [panel, log, empty, form, prompt, button, fresh, status, unable] = [
    "chat", "chat-log", "chat-empty", "chat-form", "chat-prompt", "chat-go", "chat-new", "chat-status", "chat-unable",
  ].map((id) => document.getElementById(id));
  const remembers = model.tasks.includes("chat");
  const picker = new Picker(document.getElementById("chat-picture"), model, "A picture to show (optional)");
  let said = []; // messages of the API
  unable.hidden = remembers;
  pasteInto(panel, picker);
  enterSends(prompt);

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = prompt.value.trim();
    if (!text && !picker.picture && !button.stop) return void (status.textContent = "Write something, or show a picture.");
    working({ button, status }, (how) => answered(text, picker.picture, how));
  });

  fresh.addEventListener("click", () => {
    button.stop?.abort();
    said = [];
    log.replaceChildren(empty);
  });

  async function answered(text, picture, how) {
    const content = [];
    if (picture) content.push({ type: "image_url", image_url: { url: picture.url } });
    if (text) content.push({ type: "text", text });
    const question = { role: "user", content };
    const asked = bubble("user", "You");
    if (picture) asked.picture(picture.url, picture.alt);
    asked.write(text);
    prompt.value = "";
    await picker.set(null);
    how.say("Waiting for the answer ...");
    const answer = bubble("assistant", "The model");
    const reply = { role: "assistant", content: "", images: [] };
    try {
      const messages = remembers ? [...said, question] : [question];
      for await (const event of events("v1/chat/completions", { messages }, how)) {
        const { delta, finish_reason: reason } = event.choices[0];
        reply.content += delta.content ?? "";
        answer.write(reply.content);
        for (const each of delta.images ?? []) {
          reply.images.push({ type: each.type, image_url: each.image_url });
          answer.picture(each.image_url.url, text || "a picture of the model's");
        }
        if (reason === "length") answer.write(`${reply.content} ...`);
      }
    } catch (error) {
      asked.remove();
      answer.remove();
      prompt.value ||= text; // nothing that was written is lost
      if (picture && !picker.picture) await picker.set(picture);
      throw error;
    }
    if (!reply.content.trim() && !reply.images.length) answer.write("(nothing)");
    if (log.contains(answer.root)) said.push(question, reply);
  }

  function bubble(kind, name) {
    empty.remove();
    const [root, who, words] = ["div", "strong", "p"].map((each) => document.createElement(each));
    root.className = `bubble ${kind}`;
    who.textContent = name;
    who.className = "soft";
    root.append(who, words);
    log.append(root);
    const down = () => (log.scrollTop = log.scrollHeight);
    down();
    return {
      root,
      write: (text) => {
        words.textContent = text.trim();
        down();
      },
      picture: (url, alt) => {
        const image = document.createElement("img");
        Object.assign(image, { src: url, alt, onload: down });
        image.classList.toggle("px", model.tiny);
        root.append(image);
      },
      remove: () => {
        root.remove();
        if (!log.children.length) log.append(empty);
      },
    };
  }

  return { shown: () => picker.refresh() };
}
