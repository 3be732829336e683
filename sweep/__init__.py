"""Every model of timm and torchvision, patched and checked: `python -m sweep`."""
