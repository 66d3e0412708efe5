"""The decorrelation loss: its definition, its gradient, and what it does to sinks."""

import numpy as np
import pytest
import torch

import interp
from interp.capture import Capture
from interp.errors import InputError
from interp.interventions.decorrelation import decorrelation_loss
from interp.kernels.definitions import Received
from interp.tasks.reading import shipped


def states(n_layers=4, n_tokens=5, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    shape = (2, n_tokens, 3)
    made = (torch.randn(shape, generator=draw).to(dtype) for _ in range(n_layers))
    return tuple(made)


def test_it_is_the_mean_squared_cosine_of_the_inner_layers():
    hidden = states()
    squares = []
    for layer in hidden[1:-1]:
        for sample in layer.numpy():
            for token in sample[1:4]:
                lengths = np.linalg.norm(sample[0]) * np.linalg.norm(token)
                squares.append((sample[0] @ token / lengths) ** 2)
    assert float(decorrelation_loss(hidden, 3)) == pytest.approx(np.mean(squares))


def test_copies_of_the_first_token_give_one_and_orthogonal_tokens_nothing():
    alike = torch.tensor([[[2.0, 0.0], [-30.0, 0.0], [0.5, 0.0]]])
    apart = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.0, -7.0]]])
    assert float(decorrelation_loss([alike] * 3, 2)) == pytest.approx(1.0)
    assert float(decorrelation_loss([apart] * 3, 2)) == 0.0


def test_the_gradient_is_that_of_finite_differences_on_both_sides():
    hidden = tuple(layer.requires_grad_() for layer in states())
    assert torch.autograd.gradcheck(lambda *h: decorrelation_loss(h, 3), hidden)
    decorrelation_loss(hidden, 3).backward()
    gradients = [layer.grad for layer in hidden]
    assert gradients[0] is None or not gradients[0].any()
    assert gradients[-1] is None or not gradients[-1].any()
    for gradient in gradients[1:-1]:
        assert gradient[:, :4].abs().amin(-1).gt(0).all()
        assert not gradient[:, 4].any()


def test_massive_activations_in_half_precision_do_not_overflow():
    hidden = tuple(layer * 1e4 for layer in states(dtype=torch.float16))
    loss = decorrelation_loss(hidden, 4)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(
        float(decorrelation_loss(states(), 4)), rel=0.02
    )


@pytest.mark.parametrize("n_prefix", [0, 5])
def test_a_prefix_that_does_not_fit_is_refused(n_prefix):
    with pytest.raises(InputError, match="1 to 4"):
        decorrelation_loss(states(), n_prefix)


def test_a_model_of_one_block_has_no_layer_in_between():
    with pytest.raises(InputError, match="two blocks"):
        decorrelation_loss(states(2), 3)


N_TOKENS, N_STEPS, RATE, WEIGHT = 36, 16, 1e-3, 1000.0


def inspected(model, ids):
    """NLL, loss, cosine of each later token to the first at layer 3, mass received."""
    with torch.no_grad():
        out = model.module(ids, labels=ids, output_hidden_states=True)
    stream = out.hidden_states[3][0]
    cosine = torch.cosine_similarity(stream[:1], stream[1:])
    node = interp.trace(model, ids, capture=Capture((Received(),), None))["self"]
    received = node["received"].sel(layer=slice(3, 8)).mean(("layer", "head"))
    loss = float(decorrelation_loss(out.hidden_states, N_TOKENS - 1))
    return float(out.loss), loss, cosine, received.values


def tuned(model, ids, weight):
    """What is found after a short training of three blocks, which are then put back."""
    trained = [
        (parameter, parameter.detach().clone())
        for block in model.module.model.layers[:3]
        for parameter in block.parameters()
    ]
    for parameter in model.module.parameters():
        parameter.requires_grad_(False)
    for parameter, _ in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam([parameter for parameter, _ in trained], lr=RATE)
    for _ in range(N_STEPS):
        out = model.module(ids, labels=ids, output_hidden_states=True)
        loss = decorrelation_loss(out.hidden_states, N_TOKENS - 1)
        optimizer.zero_grad()
        (out.loss + weight * loss).backward()
        optimizer.step()
    found = inspected(model, ids)
    with torch.no_grad():
        for parameter, value in trained:
            parameter.copy_(value)
    return found


@pytest.mark.real
@pytest.mark.slow
def test_a_short_fine_tune_takes_the_intermediate_sinks_away():
    """Anand et al.: decorrelated, tokens other than the first stop being sinks."""
    model = interp.load("smollm2-135m")
    ids = torch.tensor([model.tokenizer(shipped()[:1000])["input_ids"][:N_TOKENS]])
    nll, loss, cosine, received = inspected(model, ids)
    sinks = (cosine > 0.9).nonzero().flatten().numpy() + 1
    assert {model.tokenizer.decode(token) for token in ids[0, sinks]} == {" the"}
    before = received[sinks].sum()
    assert before > 0.4

    nll_after, loss_after, cosine_after, received_after = tuned(model, ids, WEIGHT)
    assert loss_after < loss / 10
    assert cosine_after.abs().max() < 0.5
    assert received_after[sinks].sum() < before / 3
    assert nll_after < nll

    _, loss_plain, cosine_plain, received_plain = tuned(model, ids, 0.0)
    assert loss_plain > loss / 3
    assert cosine_plain.max() > 0.9
    assert received_plain[sinks].sum() > before / 2
