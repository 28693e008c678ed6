// Editors that are not on this computer say so in the list, with where they come from and how large they are.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "sifm.editors",
  nodeCreated(node) {
    const { sifm_absent: absent } = node.constructor?.nodeData?.input?.required?.editor?.[1] ?? {};
    const widget = absent && node.widgets?.find(({ name }) => name === "editor");
    if (widget) widget.options.getOptionLabel = (value) => (absent[value] ? `${value} (${absent[value]})` : value ?? "");
  },
});
