"""torchvision's two operators that a detector cannot do without, on a GPU beside the CPU."""

from __future__ import annotations

from transfer.doctor.finding import Finding


def operators(device: str) -> Finding:
    """NMS keeps the same boxes; RoIAlign gives the same values and gradients within rounding."""
    import torch
    from torchvision.ops import nms, roi_align

    draw = torch.Generator().manual_seed(3)
    corner = torch.rand(200, 2, generator=draw) * 40
    boxes = torch.cat([corner, corner + 4 + torch.rand(200, 2, generator=draw) * 20], 1)
    scores = torch.linspace(0, 1, 200)[torch.randperm(200, generator=draw)]
    kept = [nms(boxes.to(where), scores.to(where), 0.5).cpu() for where in ("cpu", device)]
    maps, pooled = [], []
    for where in ("cpu", device):
        features = torch.rand(1, 8, 16, 16, generator=torch.Generator().manual_seed(4)).to(where).requires_grad_()
        pooled.append(roi_align(features, [boxes.to(where)], 7, 0.25, 0, True))
        pooled[-1].square().sum().backward()
        assert features.grad is not None
        maps.append(features.grad.cpu())
    same = torch.equal(*kept)
    values = float((pooled[0].detach() - pooled[1].detach().cpu()).abs().max())
    gradient = float((maps[0] - maps[1]).abs().max() / maps[0].abs().max())
    boxes_kept = f"NMS keeps {'the same' if same else 'other'} boxes"
    found = f"{boxes_kept}, RoIAlign differs by {values:.0e}, its gradient by {gradient:.0e}"
    if same and values <= 1e-5 and gradient <= 1e-4:
        return Finding(f"torchvision on {device}", "ok", found, normal="the same boxes, up to 1e-05 and 1e-04")
    advice = "install the torchvision made for this torch and its CUDA: make setup TORCH=… TORCHVISION=…"
    return Finding(f"torchvision on {device}", "wrong", found, advice, "the same boxes, up to 1e-05 and 1e-04")
