// ComfyUI's app: it keeps what is registered, for tests to call.
import "./api.js";

export const app = {
  extensions: {},
  tabs: [],
  toasts: [],
  registerExtension(extension) { app.extensions[extension.name] = extension; },
  extensionManager: {
    registerSidebarTab: (tab) => app.tabs.push(tab),
    toast: { add: (toast) => app.toasts.push(toast), remove: (toast) => { app.toasts = app.toasts.filter((one) => one !== toast); } },
  },
};

// A node as the extension meets it, with its widgets' elements.
export function node(comfyClass) {
  const widgets = [];
  const addDOMWidget = (name, kind, element, options) => { widgets.push({ name, element, options }); return widgets.at(-1); };
  return { comfyClass, widgets, addDOMWidget };
}

// What has been promised by now has happened.
export const settled = () => new Promise((resolve) => setTimeout(resolve));
