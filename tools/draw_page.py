"""Draws assets/figures/chat_page.png: the web page with the base and workspace/merged, asked in a real browser.

PYTHONPATH=. python -m helpers.machine.profile python tools/draw_page.py
"""
from playwright.sync_api import expect

from helpers.ask import chat, page
from helpers.machine import profile
from tests import browser

PICTURE = profile.ROOT / "assets" / "figures" / "chat_page.png"
QUESTIONS = [page.some_questions()[0], "你是谁？"]

if __name__ == "__main__":
    folders = {"微调前": profile.TINY_BASE, "微调后": profile.made_by("第 6 课", chat.MERGED)}
    address = page.serve(page.build(page.load_answerers(folders, gpu=None), page.some_questions()), port=0)
    with browser.opened(address, viewport={"width": 1100, "height": 770}) as view:
        for count, question in enumerate(QUESTIONS, 1):
            view.get_by_role("button", name=question).click()
            expect(view.get_by_placeholder("输入问题")).to_have_value(question)
            view.get_by_role("button", name="发送").click()
            expect(view.locator(".bot.message")).to_have_count(len(folders) * count)
            view.wait_for_timeout(3000)  # until both have been written to the end
        view.mouse.move(0, 0)
        view.screenshot(path=PICTURE)
