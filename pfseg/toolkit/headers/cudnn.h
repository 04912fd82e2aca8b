// Comes before cuDNN's own header: version 9 dropped ten recurrent calls that Jittor 1.3.11 names. pfseg has no recurrent
// network, so here each only reports that it isn't supported.
#pragma once
#include "../include-real/cudnn.h"
#if defined(__cplusplus) && CUDNN_MAJOR >= 9
#define PFSEG_DROPPED(name)                          \
    template <class... Arguments>                    \
    inline cudnnStatus_t name(Arguments&&...) {      \
        return CUDNN_STATUS_NOT_SUPPORTED;           \
    }
PFSEG_DROPPED(cudnnSetRNNDescriptor_v6)
PFSEG_DROPPED(cudnnGetRNNParamsSize)
PFSEG_DROPPED(cudnnGetRNNWorkspaceSize)
PFSEG_DROPPED(cudnnGetRNNTrainingReserveSize)
PFSEG_DROPPED(cudnnGetRNNLinLayerMatrixParams)
PFSEG_DROPPED(cudnnGetRNNLinLayerBiasParams)
PFSEG_DROPPED(cudnnRNNForwardTraining)
PFSEG_DROPPED(cudnnRNNForwardInference)
PFSEG_DROPPED(cudnnRNNBackwardData)
PFSEG_DROPPED(cudnnRNNBackwardWeights)
#undef PFSEG_DROPPED
#endif
