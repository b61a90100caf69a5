"""Draws assets/figures/chat_page.png: the web page with the base, its adapter off and on, asked in a real browser.

PYTHONPATH=. python -m helpers.machine.profile python tools/draw_page.py
"""
from playwright.sync_api import expect

from helpers.ask import page
from helpers.machine import profile
from tests import browser

PICTURE = profile.ROOT / "assets" / "figures" / "chat_page.png"
QUESTIONS = [page.some_questions()[0], "你是谁？"]

if __name__ == "__main__":
    answerers = page.switched_answerers(profile.TINY_BASE, profile.made_by("第 5 课", page.ADAPTER))
    address = page.serve(page.build(answerers, page.some_questions()), port=0)
    with browser.opened(address, viewport={"width": 1100, "height": 770}) as view:
        for count, question in enumerate(QUESTIONS, 1):
            view.get_by_role("button", name=question).click()
            expect(view.get_by_placeholder("输入问题")).to_have_value(question)
            view.get_by_role("button", name="发送").click()
            expect(view.locator(".bot.message")).to_have_count(len(answerers) * count)
            view.wait_for_timeout(3000)  # until both have been written to the end
        view.mouse.move(0, 0)
        view.screenshot(path=PICTURE)
