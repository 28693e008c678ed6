// What stops a graph before it starts is said at once, and once. The front end keeps it behind "View details" and an
// icon at every input, and ComfyUI repeats it for each input that was looked at.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { found } from "./shown.js";

let shown = []; // how to take away what is shown

function raise(summary, detail) {
  const { toast } = app.extensionManager;
  if (toast.dismiss) { // since front end 1.5x
    const id = toast.error(summary, { description: detail, duration: Infinity });
    return () => toast.dismiss(id);
  }
  const made = { severity: "error", summary, detail };
  toast.add(made);
  return () => toast.remove(made);
}

function tell(refused) {
  for (const away of shown) away();
  const said = new Map(); // sentence -> title of the first node that says it
  for (const [id, { class_type: kind, errors }] of Object.entries(refused ?? {})) {
    for (const { type, details } of kind?.startsWith("SIFM_") ? errors : []) {
      const sentence = type === "custom_validation_failed" && details.replace(/^\w+( - |: )/, "");
      if (sentence && !said.has(sentence)) said.set(sentence, found(id)?.title ?? "SIFM");
    }
  }
  shown = [...said].map(([sentence, title]) => raise(title, sentence));
}

const queue = api.queuePrompt;
api.queuePrompt = async function (...given) {
  try {
    const answer = await queue.apply(this, given);
    tell(answer?.node_errors);
    return answer;
  } catch (error) {
    tell(error?.response?.node_errors);
    throw error;
  }
};
