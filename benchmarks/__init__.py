"""Speed and memory, as ratios measured side by side in one run."""

import bdh as bdh  # before torch, because it says how torch's threads wait
