"""Methods of the stages: functions that are registered by a decorator.

::

    from atlasseg.methods import Data, method

    @method("fusion")
    def fuse(target, candidates, *, power: float = 2.0): ...

The function is then available in the command line, in recipes, in the documentation and in the contract tests. Its
parameters, their defaults and descriptions are read from its signature and its docstring.
"""

from atlasseg.methods.choices import OneOf
from atlasseg.methods.description import Method, Needs, Parameter, Workload, described_parameters
from atlasseg.methods.registry import get, list_methods, method, names, register_method
from atlasseg.methods.stages import STAGES, Data, Stage, suggestion

__all__ = [
    "STAGES",
    "Data",
    "Method",
    "Needs",
    "OneOf",
    "Parameter",
    "Stage",
    "Workload",
    "described_parameters",
    "get",
    "list_methods",
    "method",
    "names",
    "register_method",
    "suggestion",
]
