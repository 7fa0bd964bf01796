//! Modules that are one of several: burn's derived form puts the variant's name into the paths of parameters, which
//! here are names of tensors in checkpoints.

/// Implements burn's `Module` for an enum of modules, so that its parameters have the paths that they have in the
/// variant.
macro_rules! transparent_module {
    ($name:ident { $($variant:ident),+ }) => {
        impl burn::module::Module for $name {
            fn collect_devices(&self, devices: burn::module::Devices) -> burn::module::Devices {
                match self { $(Self::$variant(inner) => inner.collect_devices(devices),)+ }
            }

            fn fork(self, device: &burn::tensor::Device) -> Self {
                match self { $(Self::$variant(inner) => Self::$variant(inner.fork(device)),)+ }
            }

            fn to_device(self, device: &burn::tensor::Device) -> Self {
                match self { $(Self::$variant(inner) => Self::$variant(inner.to_device(device)),)+ }
            }

            fn train(self) -> Self {
                match self { $(Self::$variant(inner) => Self::$variant(inner.train()),)+ }
            }

            fn valid(&self) -> Self {
                match self { $(Self::$variant(inner) => Self::$variant(inner.valid()),)+ }
            }

            fn materialize(self) -> Self {
                match self { $(Self::$variant(inner) => Self::$variant(inner.materialize()),)+ }
            }

            fn visit<Visitor: burn::module::ModuleVisitor>(&self, visitor: &mut Visitor) {
                match self { $(Self::$variant(inner) => inner.visit(visitor),)+ }
            }

            fn map<Mapper: burn::module::ModuleMapper>(self, mapper: &mut Mapper) -> Self {
                match self { $(Self::$variant(inner) => Self::$variant(inner.map(mapper)),)+ }
            }
        }

        impl burn::module::ModuleDisplayDefault for $name {
            fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
                match self { $(Self::$variant(inner) => inner.content(content),)+ }
            }

            fn num_params(&self) -> usize {
                burn::module::Module::num_params(self)
            }
        }

        impl burn::module::ModuleDisplay for $name {}

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self { $(Self::$variant(inner) => inner.fmt(f),)+ }
            }
        }
    };
}

pub(crate) use transparent_module;
