// Keys of the whole page. Nothing happens while something is typed, or with a modifier.

function startKeys({ move, clear }) {
  const help = byId("help");
  const showHelp = () => help.showModal();
  byId("show-help").addEventListener("click", showHelp);
  const flipTheme = () => setTheme(isDark() ? "light" : "dark");
  const search = () => {
    showView("rollouts");
    byId("f-text").focus();
    byId("f-text").select();
  };
  const actions = {
    j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    "/": search, "?": showHelp, t: flipTheme, c: clear, 1: () => showView("overview"), 2: () => showView("rollouts"),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const where = event.target;
    if (where.matches?.("input, select, textarea")) {
      if (event.key === "Escape") where.blur();
      return;
    }
    const tab = where.closest?.("[role=tab]");
    if (tab && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      const other = document.querySelector("[role=tab][aria-selected=false]");
      showView(other.dataset.view);
      other.focus();
      return;
    }
    if (event.key === "Enter" && where.closest?.("tr[data-place]")) {
      detailView.focusToken?.();
      event.preventDefault();
      return;
    }
    const browsing = ["j", "k", "ArrowDown", "ArrowUp"].includes(event.key);
    if (browsing && state.view !== "rollouts") return;
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
