// What a page lacks for readers with a screen reader, a keyboard or weak eyes: the elements of each defect.
(() => {
  const visible = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("svg"));
  const all = (selector, defect) => visible.filter((e) => e.matches(selector) && defect(e)).map((e) => e.outerHTML.slice(0, 90));
  const numbers = (color) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);

  function luminance(color) {
    const [red, green, blue] = color.map((value) => channel(value / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }
  function background(e) {
    const color = numbers(getComputedStyle(e).backgroundColor);
    if (color.length && color[3] !== 0) return color;
    return e.parentElement ? background(e.parentElement) : [255, 255, 255];
  }
  function contrast(e) { // of WCAG 2
    const pair = [numbers(getComputedStyle(e).color), background(e)].map(luminance);
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  }
  const hasText = (e) => [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const level = (e) => Number(e.tagName[1]);
  const headings = [...document.querySelectorAll("h1, h2, h3, h4")];
  const count = (selector) => document.querySelectorAll(selector).length;

  return {
    faint: all("*", (e) => hasText(e) && !e.disabled && contrast(e) < 4.5),
    unlabeled: all("select, input", (e) => !e.labels.length),
    nameless: all("button, a, summary", (e) => !e.textContent.trim()),
    skippedHeadings: headings.filter((e, i) => i && level(e) > level(headings[i - 1]) + 1).map((e) => e.textContent),
    unnamedPictures: [...document.querySelectorAll("svg[role=img]")].filter((e) => !e.getAttribute("aria-label")).map((e) => e.id),
    unreachable: all(".scroll", (e) => e.tabIndex < 0 && !e.querySelector("[tabindex]")),
    landmarks: [document.documentElement.lang, ...["header", "nav", "main", "h1"].map(count)],
    wider: document.documentElement.scrollWidth > innerWidth,
  };
})()
