"use strict";
(() => {
  const form = document.getElementById("inputs"), answer = document.getElementById("answer"), status = document.getElementById("status");
  let fading = 0;
  const say = (words) => { status.textContent = words; clearTimeout(fading); fading = setTimeout(() => { status.textContent = ""; }, 2500); };

  // Copying, and the plan of a page that stands alone.
  const copy = async (text, button) => {
    try { await navigator.clipboard.writeText(text); } catch {
      const area = document.createElement("textarea");
      area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    const before = button.textContent;
    button.textContent = "Copied"; say("Copied.");
    setTimeout(() => { button.textContent = before; }, 1400);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(document.getElementById(button.dataset.copy).textContent, button);
  });
  const kept = document.getElementById("document");
  if (kept) {
    const blob = new Blob([kept.content.textContent], { type: "application/json" });
    document.getElementById("download").href = URL.createObjectURL(blob);
  }
  if (!form) return;

  // The histogram of the load: weights of 0 to 20, dragged or set by keys.
  const MOST = 20, load = document.getElementById("load"), bars = [...document.querySelectorAll(".bar")], frame = document.getElementById("bars");
  const weight = (bar) => Number(bar.getAttribute("aria-valuenow"));
  const setBar = (bar, value) => bar.setAttribute("aria-valuenow", String(Math.max(0, Math.min(MOST, Math.round(value)))));
  const paint = () => {
    const total = bars.reduce((sum, bar) => sum + weight(bar), 0);
    for (const bar of bars) {
      const share = total ? Math.round((100 * weight(bar)) / total) : 0;
      bar.firstElementChild.style.height = `${(100 * weight(bar)) / MOST}%`;
      bar.setAttribute("aria-valuetext", `${share} % of the time`);
      bar.dataset.share = share ? `${share}%` : "";
    }
  };
  const readLoad = () => {
    const shares = new Map(load.value.split(",").map((part) => part.split(":").map(Number)));
    for (const bar of bars) setBar(bar, shares.get(Number(bar.dataset.clients)) ?? 0);
    paint();
  };
  const writeLoad = () => {
    const parts = bars.filter((bar) => weight(bar) > 0).map((bar) => `${bar.dataset.clients}:${weight(bar)}`);
    if (parts.length) load.value = parts.join(",");
    paint();
    return parts.length > 0;
  };
  let dragging = false;
  const drag = (event) => {
    const bar = bars.find((each) => { const box = each.getBoundingClientRect(); return event.clientX >= box.left && event.clientX < box.right; });
    if (!bar) return;
    const box = bar.getBoundingClientRect();
    setBar(bar, (MOST * (box.bottom - event.clientY)) / box.height);
    if (!writeLoad()) { setBar(bar, 1); writeLoad(); }
    changed(false);
  };
  frame.addEventListener("pointerdown", (event) => {
    dragging = true; frame.setPointerCapture(event.pointerId); event.target.closest(".bar")?.focus(); drag(event); event.preventDefault();
  });
  frame.addEventListener("pointermove", (event) => { if (dragging) drag(event); });
  for (const end of ["pointerup", "pointercancel"]) frame.addEventListener(end, () => { if (dragging) { dragging = false; changed(true); } });
  const STEPS = { ArrowUp: 1, ArrowDown: -1, PageUp: 5, PageDown: -5, Home: -MOST, End: MOST };
  frame.addEventListener("keydown", (event) => {
    const bar = event.target.closest(".bar"), i = bars.indexOf(bar);
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      bars[i + (event.key === "ArrowRight" ? 1 : -1)]?.focus();
    } else if (event.key in STEPS) {
      const before = weight(bar);
      setBar(bar, before + STEPS[event.key]);
      if (!writeLoad()) { setBar(bar, 1); writeLoad(); }
      if (weight(bar) !== before) changed(true);
    } else return;
    event.preventDefault();
  });

  // Inputs and the address.
  const fields = [...form.elements].filter((field) => field.name);
  const usual = new Map(fields.map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]));
  const query = () => {
    const parts = new URLSearchParams();
    for (const field of fields) {
      if (field.type === "checkbox") { if (field.checked) parts.set(field.name, "1"); } else if (field.value.trim() && field.value !== usual.get(field.name)) parts.set(field.name, field.value.trim());
    }
    return parts.toString();
  };
  const address = () => { const words = query(); return words ? `?${words}` : location.pathname; };
  const restore = () => {
    const parts = new URLSearchParams(location.search);
    for (const field of fields) {
      if (field.type === "checkbox") field.checked = parts.has(field.name) || usual.get(field.name);
      else field.value = parts.get(field.name) ?? usual.get(field.name);
      if (parts.has(field.name)) field.closest("details").open = true;
    }
    readLoad();
  };

  // What it comes to stands below the inputs where the answer itself is out of sight.
  const brief = document.getElementById("brief");
  let near = false;
  new IntersectionObserver((seen) => { near = seen.at(-1).isIntersecting; brief.hidden = near || !brief.textContent; }).observe(answer);

  // Asking: a first look, then the full plan; a newer question stops an older one.
  let asking = null, looking = false, last = null, again = false;
  const faults = (named) => {
    const known = new Set(fields.map((field) => field.name));
    for (const field of fields) {
      const words = named[field.name] ?? "", line = document.getElementById(`${field.name}-fault`);
      line.textContent = words; line.hidden = !words;
      (field.type === "hidden" ? frame : field).toggleAttribute("aria-invalid", Boolean(words));
      if (words) field.closest("details").open = true;
    }
    const rest = Object.entries(named).filter(([name]) => !known.has(name)).map(([, words]) => words);
    let line = document.getElementById("fault");
    if (!line) { line = document.createElement("p"); line.id = "fault"; line.className = "fault"; line.setAttribute("role", "alert"); answer.prepend(line); }
    line.textContent = rest.join("; "); line.hidden = !rest.length;
    answer.classList.toggle("stale", Object.keys(named).length > 0);
    if (Object.keys(named).length) say(Object.values(named).join("; "));
  };
  const put = (html, full) => {
    const fresh = document.createRange().createContextualFragment(html), old = document.getElementById("plan");
    const open = [...answer.querySelectorAll("details[open]")].map((each) => each.id), focused = document.activeElement?.id;
    if (full || !old) answer.replaceChildren(fresh);
    else {
      for (const { name, value } of fresh.getElementById("plan").attributes) old.setAttribute(name, value);
      const parts = new Map([...fresh.querySelectorAll("section")].map((part) => [part.id, part]));
      for (const section of [...old.querySelectorAll("section")]) {
        if (parts.has(section.id)) section.replaceWith(parts.get(section.id)); else section.classList.add("stale");
      }
    }
    for (const id of open) { const each = id && document.getElementById(id); if (each) each.open = true; }
    if (focused && document.activeElement === document.body) document.getElementById(focused)?.focus({ preventScroll: true });
    const plan = document.getElementById("plan"), mark = document.getElementById("mark"), link = document.getElementById("download");
    mark.textContent = plan.dataset.mark; mark.className = `mark ${plan.dataset.mark}`; mark.title = plan.dataset.markAbout;
    brief.textContent = plan.dataset.brief; brief.hidden = near;
    if (link) link.href = `/Plan.json?${query()}`;
  };
  // Whether the answer was the full one; null where there was none.
  const ask = async (words, sketch, signal) => {
    const reply = await fetch(`/answer?${words}`, { signal, headers: sketch ? { "foredraft-sketch": "1" } : {} });
    if (reply.status === 204) return null;
    if (!reply.ok) {
      const text = await reply.text();
      let named;
      try { named = JSON.parse(text).faults; } catch { named = { "": text.slice(0, 200) }; }
      faults(named);
      return null;
    }
    const html = await reply.text(), full = reply.headers.get("foredraft-full") === "1";
    if (signal.aborted) return null;
    faults({}); put(html, full);
    return full;
  };
  const turn = async (words, signal) => {
    const reply = await fetch(`/turns?${words}`, { signal });
    const html = await reply.text(), place = document.getElementById("turns");
    if (reply.status === 200 && place && !signal.aborted) place.replaceChildren(document.createRange().createContextualFragment(html));
  };
  const run = async (settled) => {
    const words = query();
    if (!settled && looking) { again = true; return; }
    asking?.abort();
    const own = new AbortController(), start = performance.now();
    asking = own; again = false; last = words;
    answer.setAttribute("aria-busy", "true");
    try {
      looking = true;
      let full = await ask(words, true, own.signal);
      if (asking === own) looking = false;
      document.documentElement.dataset.first = String(Math.round(performance.now() - start));
      if (full === false && settled) { say("A first look; the full plan follows."); full = await ask(words, false, own.signal); }
      if (full && settled) {
        document.documentElement.dataset.full = String(Math.round(performance.now() - start));
        answer.removeAttribute("aria-busy"); say("The plan is complete.");
        await turn(words, own.signal);
      }
    } catch (error) {
      if (error.name !== "AbortError") faults({ "": "the planner does not answer; is foredraft page still running?" });
    } finally {
      if (asking === own) {
        asking = null; looking = false; answer.removeAttribute("aria-busy");
        if (again || query() !== last) run(false);
      }
    }
  };
  let timer = 0;
  const changed = (settled) => {
    clearTimeout(timer);
    if (settled) { if (address() !== location.pathname + location.search && address() !== location.search) history.pushState(null, "", address()); run(true); } else run(false);
  };
  form.addEventListener("input", (event) => { if (event.target.name) { clearTimeout(timer); timer = setTimeout(() => changed(true), event.target.id === "target" ? 800 : event.target.type === "text" ? 350 : 0); } });
  form.addEventListener("submit", (event) => { event.preventDefault(); changed(true); });
  document.getElementById("reset").addEventListener("click", () => { history.pushState(null, "", location.pathname); restore(); run(true); });
  document.getElementById("share").addEventListener("click", (event) => copy(location.origin + location.pathname + (query() ? `?${query()}` : ""), event.target));
  addEventListener("popstate", () => { restore(); run(true); });
  restore(); run(true);
})();
