"""Affine registration by Gauss-Newton optimisation of a similarity metric, from the best of several starts."""

from atlasseg.methods import method
from atlasseg.registration._linear import linear_registration

register = method("registration")(linear_registration("affine", "an affine transform (12 parameters)", module=__name__))
