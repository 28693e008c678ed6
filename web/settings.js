// The settings page: what lies in ComfyUI's user folder, how large it may become, and what can be cleared.
import { app } from "../../scripts/app.js";
import { ask, make } from "./gallery.js";
import { say } from "./words.js";

const size = (bytes) => (bytes < 1e9 ? `${Math.ceil(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(1)} GB`);

function storage() {
  const box = make("div", { style: "display: grid; grid-template-columns: auto auto 70px; gap: 4px 14px; align-items: center" });
  const draw = ({ parts, cleared }) => box.replaceChildren(...Object.entries(parts).flatMap(([part, bytes]) => [
    make("span", { textContent: say(part) }), make("span", { textContent: size(bytes), style: "text-align: right" }),
    cleared.includes(part) && bytes ? make("button", { textContent: say("Clear"), onclick: () => change({ clear: part }, say(part)) }) : make("span")]));
  const change = async (body, what) => {
    if (!(await app.extensionManager.dialog.confirm({ title: "SIFM", message: `${say("Clear")}: ${what}?` }))) return;
    draw(await ask("/sifm/storage", body));
  };
  ask("/sifm/storage").then(draw, (error) => box.replaceChildren(error.message));
  return box;
}

app.registerExtension({
  name: "sifm.settings",
  settings: [
    {
      id: "SIFM.Storage.Limit", category: ["SIFM", "Storage", "Limit"], name: "Gigabytes that kept results may take (0: no limit)", type: "number",
      tooltip: "Results that were computed are kept in ComfyUI's user folder so that nothing is computed twice. Those that were used longest ago go first.",
      defaultValue: 5, attrs: { min: 0, max: 100000, step: 1 },
      onChange: (value, before) => { if (before !== undefined && value !== before) ask("/sifm/storage", { limit: Number(value) }).catch(() => {}); },
    },
    { id: "SIFM.Storage.Contents", category: ["SIFM", "Storage", "Contents"], name: "What is kept", type: storage, defaultValue: "" },
  ],
  commands: [{
    id: "SIFM.OpenRuns", label: "SIFM: show runs and judgements", icon: "pi pi-shield",
    function: () => app.extensionManager.sidebarTab?.toggleSidebarTab?.("sifm"),
  }],
  keybindings: [{ commandId: "SIFM.OpenRuns", combo: { key: "i", alt: true } }],
});
