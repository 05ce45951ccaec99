"""Training HTS-AT: data sets, samplers, augmentation and a `Trainer` that knows them."""
