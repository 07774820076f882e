// Where an instruction set's kernels are found.

static const Kernels kKernels = {
    {attend<float>, attend<BFloat16>, attend<Half>},
    {project<float>, project<BFloat16>, project<Half>},
    {normalize<float>, normalize<BFloat16>, normalize<Half>},
    {{prepare<float, float>, prepare<BFloat16, BFloat16>, prepare<Half, Half>},
     {prepare<Int8, float>, prepare<Int8, BFloat16>, prepare<Int8, Half>}},
    {{multiply<float, float>, multiply<BFloat16, BFloat16>, multiply<Half, Half>},
     {multiply<Int8, float>, multiply<Int8, BFloat16>, multiply<Int8, Half>}},
};
