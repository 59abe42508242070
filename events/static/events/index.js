// The start page: shows what is new while somebody looks, without moving what is being read; copies commands.
"use strict";

const page = document.getElementById("overview");
const said = document.getElementById("said");
const pause = document.getElementById("pause");
const showNew = document.getElementById("show-new");
const refreshed = document.getElementById("refreshed");

//: Milliseconds: how long an answer may take, the wait after a failed try, and how long a button says that it copied.
const PATIENCE = 10000;
const AFTER_FAILURE = 5000;
const SAID = 2000;

let etag = "";
let held = null;
let timer = 0;
let asking = false;
let stopped = false;
let paused = false;

function inUse(element) {
    const selection = getSelection();
    return element.contains(document.activeElement) || (!selection.isCollapsed && selection.containsNode(element, true));
}

function beingRead(list) {
    // Under the pointer, or scrolled into: new rows on top would push away what is read.
    return inUse(list) || list.matches(":hover") || list.getBoundingClientRect().top < 0;
}

function ids(list) {
    return [...list.querySelectorAll("[data-id]")].map((row) => row.dataset.id);
}

function flash(elements) {
    for (const element of elements) {
        element.classList.add("fresh");
        element.addEventListener("animationend", () => element.classList.remove("fresh"), { once: true });
    }
}

function put(fresh, id) {
    const shown = document.getElementById(id);
    const next = fresh.getElementById(id);
    if (shown.innerHTML === next.innerHTML) return;
    shown.className = next.className;
    shown.replaceChildren(...next.childNodes);
}

function putState(fresh) {
    if (inUse(document.getElementById("state"))) return;
    const verdict = document.getElementById("verdict");
    const next = fresh.getElementById("verdict").textContent;
    const changed = verdict.textContent !== next;
    put(fresh, "state");
    document.title = document.title.replace(/^[^·]*·/, `${next} ·`);
    if (changed) said.textContent = next;
}

function putCounts(fresh) {
    if (inUse(document.getElementById("counts"))) return;
    put(fresh, "counts");
}

function putLatest(fresh) {
    held = null;
    showNew.hidden = true;
    const list = document.getElementById("latest");
    const known = new Set(ids(list));
    put(fresh, "latest");
    flash([...list.querySelectorAll("[data-id]")].filter((row) => !known.has(row.dataset.id)));
}

function offerLatest(fresh) {
    const list = document.getElementById("latest");
    if (!beingRead(list)) {
        putLatest(fresh);
        return;
    }
    held = fresh;
    const known = new Set(ids(list));
    const next = ids(fresh.getElementById("latest"));
    const count = next.filter((id) => !known.has(id)).length;
    // Where none of the list is known, there may have been others before it.
    showNew.textContent = `Show ${count}${count > 1 && count === next.length ? "+" : ""} new`;
    showNew.hidden = !count;
}

function say(text, stale = false) {
    if (refreshed.textContent === text) return;
    refreshed.textContent = text;
    refreshed.classList.toggle("stale", stale);
    if (stale) said.textContent = text;
}

async function refresh() {
    const answer = await fetch(page.dataset.url, {
        headers: { Accept: "text/html", ...(etag && { "If-None-Match": etag }) },
        cache: "no-store",
        signal: AbortSignal.timeout(PATIENCE),
    });
    if (answer.status === 401 || answer.status === 403) {
        say("You are logged out. Reload to log in.", true);
        stopped = true;
        return 0;
    }
    if (answer.status === 429) return 1000 * (Number(answer.headers.get("Retry-After")) || 1);
    if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        etag = answer.headers.get("ETag") || "";
        putState(fresh);
        putCounts(fresh);
        offerLatest(fresh);
    } else if (answer.status !== 304) {
        throw new Error(`status ${answer.status}`);
    } else if (held) {
        offerLatest(held);
    }
    say("Refreshes by itself.");
    return Number(page.dataset.refresh);
}

function waiting() {
    return !stopped && !paused && !document.hidden;
}

async function look() {
    clearTimeout(timer);
    if (asking || !waiting()) return;
    asking = true;
    let next = AFTER_FAILURE;
    try {
        next = await refresh();
    } catch (error) {
        say("No answer. Trying again.", true);
    }
    asking = false;
    if (waiting()) timer = setTimeout(look, next);
}

function selectAll(element) {
    const selection = getSelection();
    selection.removeAllRanges();
    const range = document.createRange();
    range.selectNodeContents(element);
    selection.addRange(range);
}

async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    try {
        await navigator.clipboard.writeText(source.textContent);
    } catch (error) {
        // Browsers have no clipboard for pages that came over http from another machine, but still copy a selection.
        selectAll(source);
        if (!document.execCommand("copy")) {
            said.textContent = "Press Ctrl-C to copy what is selected";
            return;
        }
    }
    button.textContent = "Copied";
    said.textContent = "Copied";
    setTimeout(() => {
        button.textContent = "Copy";
        said.textContent = "";
    }, SAID);
}

for (const button of document.querySelectorAll("[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
}

if (page) {
    pause.hidden = false;
    pause.addEventListener("click", () => {
        paused = !paused;
        pause.textContent = paused ? "Resume" : "Pause";
        if (paused) say("Paused.");
        look();
    });
    showNew.addEventListener("click", () => {
        pause.focus();
        putLatest(held);
    });
    document.addEventListener("visibilitychange", look);
    say("Refreshes by itself.");
    timer = setTimeout(look, Number(page.dataset.refresh));
}
