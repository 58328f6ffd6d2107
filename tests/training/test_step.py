"""One optimiser step."""

import torch

from dataset import collate
from tests.runs import make_runner


def test_split_into_batches_does_not_change_the_gradients(tiny_project):
    """Answers of unequal length, so that a mean of batch means would be another number."""
    options = (
        "run.max_grad_norm=null",
        "run.batch_size_train=4",
        "model.qformer_dropout=0",
        "run.accum_grad_iters=2",
        "datasets.bucket_batches=0",
    )
    runner = make_runner(tiny_project.config, *options)
    first, second = next(runner._windows())
    data = runner.train_data
    keys = [(0, index) for index in (*first.ids, *second.ids)]
    joined = collate([data[key] for key in keys], runner.model.text)
    tokens = joined.text_batch.target_tokens
    assert tokens == first.text_batch.target_tokens + second.text_batch.target_tokens
    gradients = []
    for window in ([first, second], [joined]):
        loss, _ = runner.training_step._accumulate(window, tokens)
        gradients.append([parameter.grad.clone() for parameter in runner.model.adapter_parameters()])
        runner.optimizer.zero_grad(set_to_none=True)
        assert loss > 0
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
