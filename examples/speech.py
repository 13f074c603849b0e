"""Speech: WaveGlow learns to speak after a mel spectrogram.

    python examples/speech.py [--steps 600] [--quick] [--output speech_output]

The recording `data/speech.wav` (8 kHz) was made with espeak-ng. Its end is held out; the trained flow speaks it
anew from the spectrogram alone. Ends with a sound file and a picture of both spectrograms.
"""

import argparse
import math
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from scipy.io import wavfile
from torch import nn

from pyro_coupling import flows
from pyro_coupling.transforms import Bijection

RECORDING = Path(__file__).parent / "data" / "speech.wav"
PIECE, HOP, WINDOW, BANDS = 1024, 64, 256, 40
NOISE = 0.01  # of the sound's standard deviation: hides the steps of 16 bits


def mel_filters(rate: int) -> torch.Tensor:
    """Triangular filters, evenly spaced in mel, ``(BANDS, WINDOW // 2 + 1)``."""
    highest = 2595 * math.log10(1 + rate / 2 / 700)
    corners = 700 * (10 ** (torch.linspace(0, highest, BANDS + 2) / 2595) - 1)
    hertz = torch.linspace(0, rate / 2, WINDOW // 2 + 1)
    left, centre, right = (corners[i : BANDS + i, None] for i in range(3))
    filters = torch.minimum((hertz - left) / (centre - left), (right - hertz) / (right - centre)).clamp(min=0)
    return filters / filters.sum(1, keepdim=True).clamp(min=1e-3)


def mel_spectrogram(sound: torch.Tensor, rate: int) -> torch.Tensor:
    """Log mel spectrogram, ``(BANDS, len(sound) // HOP)``."""
    frames = torch.stft(sound, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True).abs()
    return (mel_filters(rate) @ frames).clamp(min=1e-2).log()[:, :-1]


def build(num_samples: int) -> Bijection:
    """The flow for a piece of this length; its parameters serve every length."""
    return flows.wave_glow(
        num_samples, num_layers=8, hidden_channels=32, context_dim=(BANDS, num_samples // HOP), num_dilations=6
    )


def train(flow: Bijection, sound: torch.Tensor, mel: torch.Tensor, steps: int) -> None:
    """Maximum likelihood of random pieces given their spectrograms."""
    optimizer = torch.optim.Adam(flow.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    began = time.monotonic()
    for step in range(1, steps + 1):
        frames = torch.randint(mel.size(1) - PIECE // HOP, (16,))
        pieces = torch.stack([sound[HOP * f : HOP * f + PIECE] for f in frames])
        context = torch.stack([mel[:, f : f + PIECE // HOP] for f in frames])
        noisy = pieces + NOISE * torch.randn_like(pieces)
        loss = -flows.distribution(flow, context=context).log_prob(noisy).mean() / PIECE
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            print(f"step {step:5d}  {loss.item():+.3f} nats a sample  {time.monotonic() - began:5.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--output", type=Path, default=Path("speech_output"))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rate, samples = wavfile.read(RECORDING)
    sound = torch.tensor(samples, dtype=torch.float32)
    sound = sound / sound.std()
    held_out = PIECE * int(0.2 * len(sound) / PIECE)
    known, unknown = sound[:-held_out], sound[-held_out:]

    flow = build(PIECE)
    print(
        f"wave_glow with {sum(p.numel() for p in flow.parameters()):,} parameters, {len(known) / rate:.1f} s of speech"
    )
    train(flow, known, mel_spectrogram(known, rate), 2 if arguments.quick else arguments.steps)

    whole = build(held_out).eval()
    whole.load_state_dict(flow.state_dict())
    mel = mel_spectrogram(unknown, rate)
    with torch.no_grad():
        noisy = unknown + NOISE * torch.randn_like(unknown)
        learned = flows.distribution(whole, context=mel).log_prob(noisy).item() / held_out
        spoken = flows.distribution(whole, context=mel, temperature=0.7).sample()
    gaussian = torch.distributions.Normal(0.0, 1.0).log_prob(noisy).mean().item()
    print(f"held-out speech: {learned:+.3f} nats a sample (independent Gaussians: {gaussian:+.3f})")

    again = mel_spectrogram(spoken, rate)
    correlation = torch.corrcoef(torch.stack([mel.flatten(), again.flatten()]))[0, 1]
    print(f"correlation of the two log spectrograms: {correlation:.3f}")
    scaled = (spoken / spoken.abs().max() * 32000).to(torch.int16).numpy()
    wavfile.write(arguments.output / "spoken.wav", rate, scaled)
    figure, axes = plt.subplots(2, 1, figsize=(9, 5), layout="constrained", sharex=True)
    for axis, content, title in ((axes[0], mel, "recording, held out"), (axes[1], again, "spoken by the flow")):
        extent = (0, held_out / rate, 0, BANDS)
        axis.imshow(content, origin="lower", aspect="auto", cmap="magma", extent=extent, vmin=-4, vmax=mel.max())
        axis.set(title=title, ylabel="mel band")
    axes[1].set_xlabel("seconds")
    figure.savefig(arguments.output / "speech.png", dpi=130)
    print(f"sound: {arguments.output / 'spoken.wav'}   picture: {arguments.output / 'speech.png'}")


if __name__ == "__main__":
    main()
