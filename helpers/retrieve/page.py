"""The page of lesson 07 for documents: the model alone, and beside it the model that looks things up, with sources.

python -m helpers.retrieve.page [--model FOLDER] [--host 127.0.0.1] [--port 7860]
"""
import warnings
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers.ask import chat, models, page
from helpers.machine import commands, profile
from helpers.machine.ports import find_port
from helpers.retrieve import answers, database, embeddings, handbook
from helpers.retrieve.database import Database

FOLDER = profile.ROOT / "workspace" / "retrieve" / "page"
QUESTIONS = ["钟楼有多高？", "镇公所上午几点开门？", "东门图书馆的馆长是谁？", "慢钟镇的邮编是多少？"]


def answerer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, found_in: Database,
             count: int = 1) -> page.Answerer:
    """An answerer that looks every question up by itself, whatever was said before, and shows what it read."""
    def answer(messages, temperature, top_p):
        *opening, _ = messages[:2] if messages[0]["role"] == "system" else messages[:1]
        question = messages[-1]["content"]
        [found] = found_in.search([question], count, handbook.VALID)
        sources = [f"{passage.source}（相似度 {similarity:.2f}）：{passage.text}" for passage, similarity in found]
        asked = {"role": "user", "content": answers.prompt(question, [passage for passage, _ in found])}
        for text in chat.stream(model, tokenizer, [*opening, asked], temperature, top_p):
            yield page.Sourced(text, sources)
    return answer


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser("先查手册再回答的网页，答案带着来源")
    parser.add_argument("--model", type=Path, help="模型文件夹，默认是基座")
    parser.add_argument("--host", default="127.0.0.1", help="默认 %(default)s，只有这台机器自己能打开")
    parser.add_argument("--port", type=int, default=7860, help="默认 %(default)s；0 是随便一个空闲的")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)  # Gradio's, about what its version 6 will want
    machine, port = profile.current(), find_port(arguments.host, arguments.port)
    embedding = embeddings.current()
    database.build(FOLDER, embedding, handbook.everything())
    model, tokenizer = models.load(arguments.model or machine.base_model)
    columns = {"只凭记忆": page.model_answerer("只凭记忆", model, tokenizer),
               "先查手册": answerer(model, tokenizer, database.load(FOLDER, embedding), machine.passages_read)}
    built = page.build(columns, QUESTIONS, system_prompt="")
    print(f"网页在 {page.serve(built, arguments.host, port)}，Ctrl-C 关掉它", flush=True)
    built.block_thread()


if __name__ == "__main__":
    main()
