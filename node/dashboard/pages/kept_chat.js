// Keeps the conversation of the chat page in this tab, so that it is there again when the page is.
window.mmChat = {
  tag: "", state: {},
  begin(tag) {
    this.tag = tag;
    for (const name of Object.keys(sessionStorage)) if (name.startsWith("murmuration chat ") && name !== tag) sessionStorage.removeItem(name);
    const kept = sessionStorage.getItem(tag);
    try { this.state = JSON.parse(kept) ?? {}; } catch { this.state = {}; }
    this.state.turns = Array.isArray(this.state.turns) ? this.state.turns : [];
    this.leaving = "";
    return this.text();
  },
  text() {  // the newest messages that fit
    let letters = 0;
    const turns = this.state.turns.slice(-200);
    let first = turns.length;
    while (first > 0 && (letters += turns[first - 1][1].length) <= 150000) first--;
    return JSON.stringify({ ...this.state, turns: turns.slice(first) });
  },
  write() {
    try { sessionStorage.setItem(this.tag, this.text()); } catch { /* the browser keeps nothing, or has no space */ }
  },
  add(role, text, told, settings) {
    this.state.turns.push([role, text, told]);
    Object.assign(this.state, settings);
    this.isAnswering = role === "user";
    this.write();
  },
  take() {  // there is no answer to the last question
    this.state.turns.pop();
    this.isAnswering = false;
    this.write();
  },
  clear() {
    this.state = { ...this.state, turns: [] };
    this.isAnswering = false;
    this.write();
  },
};
addEventListener("pagehide", () => {  // leaving ends an answer; what has come of it stays
  const chat = window.mmChat;
  if (!chat.isAnswering) return;
  const parts = document.querySelectorAll(".mm-log article:last-of-type .mm-said .mm-part");
  const text = [...parts].map((part) => part.textContent).join("");
  if (text.trim()) chat.add("assistant", text, "ended: the page was left", {});
  else chat.take();
});
