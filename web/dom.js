// What every page here draws with; nothing of ComfyUI.
export function make(tag, given = {}, ...children) {
  const { className = "", ...rest } = given;
  const element = Object.assign(document.createElement(tag), rest);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function overlay(...children) {
  const box = make("div", { className: "sifm-full", tabIndex: -1 }, ...children);
  const close = () => box.remove();
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // ComfyUI's own shortcuts would act on the graph behind
    if (event.key === "Escape") close();
  });
  document.body.append(box);
  box.focus();
  return { box, close };
}
