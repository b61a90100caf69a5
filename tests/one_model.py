"""As sitecustomize.py in a course of the tests' own, every Python there begins with this: who holds a language model
and loads another ends with an error. Lessons, and all programs that they start, are run so.
"""
import gc
import sys
from importlib.machinery import PathFinder


class Watch:
    """Finds the module of transformers' models, to watch what they load."""

    @staticmethod
    def find_spec(name, path, _=None):
        if name != "transformers.modeling_utils":
            return None
        sys.meta_path.remove(Watch)
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), watch(module.PreTrainedModel))
        return spec


def watch(models):
    """From now on no model is loaded while another one lives."""
    load = models.from_pretrained.__func__

    @classmethod
    def load_alone(kind, *arguments, **options):
        gc.collect()
        for model in gc.get_objects():
            if issubclass(type(model), models) and model.can_generate() and is_living(model):
                raise RuntimeError(f"two models: {kind.__name__} is loaded while {model.name_or_path} lives")
        return load(kind, *arguments, **options)

    models.from_pretrained = load_alone


def is_living(model):
    """Whether a model holds the memory of its weights."""
    return any(weight.device.type != "meta" for weight in model.parameters())


sys.meta_path.insert(0, Watch)
