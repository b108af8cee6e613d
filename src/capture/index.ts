export type {Backend, BackendName, LiveRules} from './backend.ts';
export {
	type Applied,
	applyCapture,
	type CaptureDeps,
	prepareCapture,
	type Removed,
	removeCapture,
	undoCapture,
	type Verified,
	verifyCapture,
} from './capture.ts';
export {confirmPending, exists, type Pending, placesIn, type Rollback, readJson} from './confirm.ts';
export type {HostFacts as CaptureHostFacts} from './context.ts';
export {guardChange} from './guardian.ts';
export {planBlock, planCapture} from './plan.ts';
export {listProbes} from './probes.ts';
export {runProgram} from './programs.ts';
export {describeRule, renderText} from './render-text.ts';
export type {Plan, Rule} from './rules.ts';
export {probeThrough} from './through.ts';
export {watchCapture} from './watch.ts';
