# Finds a CUDA compiler that works and enables the language, as LORDFAST_CUDA (AUTO, ON, OFF) asks.

# Not check_language(CUDA): it believes a preset CMAKE_CUDA_COMPILER, and enable_language() ends the configuration where the
# compiler turns out to be broken or not to know an architecture. So nvcc is looked up here and tried on a small file first.
function(_lordfast_try_nvcc nvcc out_reason)
    set(probe "${CMAKE_CURRENT_BINARY_DIR}/nvcc_probe")
    file(MAKE_DIRECTORY "${probe}")
    file(WRITE "${probe}/probe.cu" "#include <cuda_runtime.h>\n__global__ void probe(int* x) { *x = 1; }\n")
    set(flags "")
    foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
        # "90a", "90a-real", "90-virtual"; words such as "native" are nvcc's own affair.
        if(architecture MATCHES "^([0-9]+[af]?)(-real|-virtual)?$")
            set(kind "sm")
            if(CMAKE_MATCH_2 STREQUAL "-virtual")
                set(kind "compute")
            endif()
            list(APPEND flags "-gencode=arch=compute_${CMAKE_MATCH_1},code=${kind}_${CMAKE_MATCH_1}")
        endif()
    endforeach()
    execute_process(
        COMMAND "${nvcc}" ${flags} -c probe.cu -o probe.o
        WORKING_DIRECTORY "${probe}" RESULT_VARIABLE code OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(code EQUAL 0)
        set(${out_reason} "" PARENT_SCOPE)
    else()
        message(STATUS "lordfast: ${nvcc} said:\n${output}")
        string(REPLACE ";" ", " architectures "${CMAKE_CUDA_ARCHITECTURES}")
        set(${out_reason} "${nvcc} failed to compile a small file for ${architectures} when lordfast was built"
            PARENT_SCOPE)
    endif()
endfunction()

# A macro: enable_language() must run in the directory's scope.
macro(lordfast_find_cuda)
    set(LORDFAST_CUDA_FOUND FALSE)
    set(LORDFAST_CUDA_REASON "")
    string(TOUPPER "${LORDFAST_CUDA}" _lordfast_cuda)
    if(NOT _lordfast_cuda MATCHES "^(AUTO|ON|OFF)$")
        message(FATAL_ERROR "LORDFAST_CUDA is '${LORDFAST_CUDA}', expected AUTO, ON or OFF")
    endif()
    if(_lordfast_cuda STREQUAL "OFF")
        set(LORDFAST_CUDA_REASON "lordfast was built with LORDFAST_CUDA=OFF")
    else()
        # Before enable_language(), which would otherwise set it to nvcc's oldest architecture.
        if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
            set(CMAKE_CUDA_ARCHITECTURES "80-real;89-real;90a-real;90-virtual")
        endif()
        # NO_CACHE: a kept build folder must notice a toolkit that came or went.
        find_program(_lordfast_nvcc NAMES "$ENV{CUDACXX}" nvcc
            HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin" PATHS /usr/local/cuda/bin NO_CACHE)
        if(_lordfast_nvcc)
            _lordfast_try_nvcc("${_lordfast_nvcc}" LORDFAST_CUDA_REASON)
        else()
            set(LORDFAST_CUDA_REASON "no nvcc was found when lordfast was built (PATH, CUDACXX, CUDA_HOME, CUDA_PATH)")
        endif()
    endif()

    if(LORDFAST_CUDA_REASON STREQUAL "")
        set(ENV{CUDACXX} "${_lordfast_nvcc}")
        set(CMAKE_CUDA_STANDARD 17)
        set(CMAKE_CUDA_STANDARD_REQUIRED ON)
        set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
        enable_language(CUDA)
        set(LORDFAST_CUDA_FOUND TRUE)
        message(STATUS "lordfast: CUDA ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
    elseif(_lordfast_cuda STREQUAL "ON")
        message(FATAL_ERROR "LORDFAST_CUDA=ON, but ${LORDFAST_CUDA_REASON}")
    else()
        message(STATUS "lordfast: building without CUDA: ${LORDFAST_CUDA_REASON}")
    endif()
endmacro()
