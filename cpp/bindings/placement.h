// placement: which memory an array counts as. A build whose GPU is emulated (cuda/emulated) takes all as the GPU's.
#pragma once

#include "lowrank_core/view.h"

namespace lowrank {

void place(View& view);

}  // namespace lowrank
