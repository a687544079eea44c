"""Rigid registration by Gauss-Newton optimisation of a similarity metric, from the best of several starts."""

from atlasseg.methods import method
from atlasseg.registration._linear import linear_registration

register = method("registration")(linear_registration("rigid", "a rigid transform (6 parameters)", module=__name__))
