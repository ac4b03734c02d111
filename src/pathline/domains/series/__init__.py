"""Time series, irregular and with gaps: classified, filled in, forecast and made by neural DEs."""

from pathline.domains.series.baselines import Chords, GRUClassifier, GRUFiller
from pathline.domains.series.cde import CDEClassifier
from pathline.domains.series.gaps import Gapped, Squares, ahead, error, gapped, patients
from pathline.domains.series.latent import Elbo, fit_latent
from pathline.domains.series.latent_ode import LatentODE
from pathline.domains.series.latent_sde import LatentSDE
from pathline.domains.series.outlook import Bound, StableForecaster, StableInterpolator
from pathline.domains.series.problems import frequencies, spirals
from pathline.domains.series.sde_gan import Discriminator, Game, Generator, play
from pathline.domains.series.series import Observed, Parts, Series, archive, prepared
from pathline.domains.series.stable import StableClassifier, StablePath
from pathline.domains.series.training import Aim, Classes, Fit, accuracy, fit, predict

__all__ = [
    "Aim",
    "Bound",
    "CDEClassifier",
    "Chords",
    "Classes",
    "Discriminator",
    "Elbo",
    "Fit",
    "GRUClassifier",
    "GRUFiller",
    "Game",
    "Gapped",
    "Generator",
    "LatentODE",
    "LatentSDE",
    "Observed",
    "Parts",
    "Series",
    "Squares",
    "StableClassifier",
    "StableForecaster",
    "StableInterpolator",
    "StablePath",
    "accuracy",
    "ahead",
    "archive",
    "error",
    "fit",
    "fit_latent",
    "frequencies",
    "gapped",
    "patients",
    "play",
    "predict",
    "prepared",
    "spirals",
]
