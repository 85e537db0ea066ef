// Keeps what a page shows true: fetches the page again every two seconds and replaces its live
// parts. Everything works without it, too.
"use strict";

const SECONDS = 2;
const stale = document.getElementById("stale");
const seen = new Map(); // id of a live part → its HTML as it came last

function replace(part, fresh) {
  const open = [...part.querySelectorAll("details[open]")].map((one) => one.id);
  const focus = part.contains(document.activeElement) ? document.activeElement.id : "";
  const next = document.importNode(fresh, true);
  for (const id of open) {
    const details = next.querySelector(`#${CSS.escape(id)}`);
    if (details) details.open = true;
  }
  part.replaceWith(next);
  if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
}

function quiet(part) {
  const chosen = getSelection();
  const selecting = !chosen.isCollapsed && part.contains(chosen.anchorNode);
  const active = document.activeElement;
  return !selecting && (!part.contains(active) || active.id);
}

async function look() {
  if (!document.hidden) {
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (answer.status === 401) location.reload();
      if (!answer.ok) throw new Error(`the console answers ${answer.status}`);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = page.getElementById(part.id);
        if (fresh && fresh.innerHTML !== seen.get(part.id) && quiet(part)) {
          seen.set(part.id, fresh.innerHTML);
          replace(part, fresh);
        }
      }
      stale.hidden = true;
    } catch (error) {
      stale.textContent = `Not up to date: ${error.message}. Trying again.`;
      stale.hidden = false;
    }
  }
  setTimeout(look, SECONDS * 1000);
}

for (const part of document.querySelectorAll("[data-live]")) seen.set(part.id, part.innerHTML);
if (seen.size) setTimeout(look, SECONDS * 1000);

// A replay goes on by itself, a step at a time.
document.querySelector("form[data-go-on]")?.requestSubmit();

// A link from elsewhere brings no strict cookie: ask once more from here, where it is sent.
if (document.querySelector("form[data-again]")) {
  fetch(location.href, { credentials: "same-origin" }).then((answer) => {
    if (answer.ok) location.replace(location.href);
  }, () => {});
}
