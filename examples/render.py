"""
Play a trained agent and save the pictures: the last frame as PNG, the whole episode as GIF.

    MUJOCO_GL=osmesa python examples/render.py --model demo/redq/MetaWorldSparse-hammer-v3_1/MetaWorldSparse-hammer-v3
"""

import argparse
from pathlib import Path

import gymnasium as gym
from PIL import Image

from sb3_ext import REDQ


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--env", default="MetaWorldSparse/hammer-v3")
    parser.add_argument("--camera", default="corner4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("episode"), help="path without a suffix")
    args = parser.parse_args()

    model = REDQ.load(args.model, device="cpu")
    env = gym.make(args.env, render_mode="rgb_array", camera_name=args.camera)
    obs, _ = env.reset(seed=args.seed)
    frames, done = [Image.fromarray(env.render())], False
    while not done:
        action, _ = model.predict(obs, deterministic=True)
        obs, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        frames.append(Image.fromarray(env.render()))
    frames[-1].save(args.output.with_suffix(".png"))
    frames[0].save(args.output.with_suffix(".gif"), save_all=True, append_images=frames[1::2], duration=40, loop=0)
    print(f"{'success' if info['is_success'] else 'failure'} after {len(frames) - 1} steps: {args.output}.png, .gif")


if __name__ == "__main__":
    main()
