// Expert settings out of sight in the classic renderer too, as Nodes 2.0 has them: "Show Advanced" in a node's menu, or
// a click on the line below its settings, brings them back. What a graph has linked stays in sight.
import { app } from "../../scripts/app.js";

const ours = (node) => node.comfyClass?.startsWith("SIFM_");
const everywhere = () => app.ui?.settings?.getSettingValue?.("Comfy.Node.AlwaysShowAdvancedWidgets") ?? false;

export function folds(node) {
  const linked = (widget) => node.isInputConnected?.(node.inputs?.findIndex((slot) => slot.widget?.name === widget.name) ?? -1) ?? false;
  const folded = (widget) => widget.options?.advanced && !node.showAdvanced && !everywhere() && !linked(widget);
  const layout = node.getLayoutWidgets;
  for (const shown of ["isWidgetVisible", "isWidgetRowVisible"].filter((name) => node[name])) { // the latter since front end 1.5x
    const visible = node[shown];
    node[shown] = (widget) => !folded(widget) && visible.call(node, widget);
  }
  node.getLayoutWidgets = () => layout.call(node).filter((widget) => !folded(widget));
  node.hasAdvancedWidgets = () => (node.widgets ?? []).some((widget) => widget.options?.advanced);
  const toggle = node.toggleAdvanced;
  node.toggleAdvanced = () => {
    toggle.call(node);
    if (!node.showAdvanced) node.setSize?.([node.size[0], node.computeSize()[1]]);
  };
}

app.registerExtension({
  name: "sifm.advanced",
  nodeCreated(node) {
    if (!ours(node) || !node.isWidgetVisible || !node.getLayoutWidgets) return;
    folds(node);
    if (node.hasAdvancedWidgets()) node.setSize?.([node.size[0], node.computeSize()[1]]);
  },
});
