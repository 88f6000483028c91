"""Fig. 6: 100 samples a class."""

from benchmarks.paper import measures
from benchmarks.paper.sizes import twins
from benchmarks.paper.spec import Data, Experiment, Plan, Row

EPOCHS = {"smoke": 3, "small": 15, "paper": 150}
DATA = {
    "smoke": Data("digits", per_class=20, test=200),
    "small": Data("cifar10", per_class=100, test=1000),
    "paper": Data("cifar10", per_class=100),
}


def plan(preset):
    return Plan(twins(preset, {"residual": EPOCHS, "ACN": EPOCHS}, data=DATA[preset]))


def measure(context, plan, name):
    training = plan.trainings[name]
    trained, data = context.trained(training), context.data(training.data)
    return {
        "accuracy": trained.test_accuracy[-1],
        "train_loss": measures.mean_loss(trained.model, data.train),
        "test_loss": measures.mean_loss(trained.model, data.test),
        "train_loss_by_epoch": trained.train_loss,
    }


EXPERIMENT = Experiment(
    "fig6",
    "Fig. 6: CIFAR-10 with 100 samples a class",
    plan,
    measure,
    (
        Row("training loss at the end, nats", "train_loss", "ACN", "residual", -1),
        Row("test loss at the end, nats", "test_loss", "ACN", "residual", -1),
        Row("accuracy, points", "accuracy", "ACN", "residual", 1, None, 100),
    ),
)
