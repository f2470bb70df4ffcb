"""The report in a real browser: no request, nothing on the console, no wider than a phone, readable in light and dark."""

import pytest
from reporting import HOSTILE, run

from flows.report import write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONTRAST = """() => {
  const light = c => { const v = c.map(x => x / 255).map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
                       return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const parse = s => (s.match(/[\\d.]+/g) || []).map(Number);
  const back = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
                      if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('h1,h2,h3,h4,p,td,th,small,span,b,dt,dd,a,summary,figcaption,footer,.gate div,pre')) {
    if (!e.innerText?.trim() || !e.getClientRects().length) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(back(e))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), e.tagName + ' ' + e.className + ' ' + e.innerText.slice(0, 30)]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
}"""
WIDER = """() => [...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll, pre, svg')) return false;
  return e.getBoundingClientRect().right > innerWidth + 1; }).map(e => e.tagName + '.' + e.className)"""


@pytest.mark.parametrize("text", ["Say <hello>.", HOSTILE])
def test_it_asks_for_nothing_fits_a_phone_and_is_readable_in_light_and_dark(tmp_path, browser, text):
    store, record = run(tmp_path, text=text)
    address = write(store, record).as_uri()
    page = browser(360, 800)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(address)
            page.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(WIDER) == []
            contrast, where = page.evaluate(CONTRAST)
            assert contrast >= 4.5, (where, scheme)
    assert page.locator("h1").inner_text() == "Released"
    assert page.evaluate("document.querySelectorAll('script, img, iframe, link').length") == 0
    assert page.locator("#lineage svg .node").count() == 9
    assert page.locator("article.sample").count() >= 10
    assert set(asked) == {address}
    assert said == []
