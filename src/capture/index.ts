export {failureOfUnit, noteFailure} from './applied.ts';
export type {Backend, BackendName, LiveRules} from './backend.ts';
export {
	type Applied,
	applyCapture,
	type CaptureDeps,
	prepareCapture,
	proxyPortsOf,
	type Removed,
	removeCapture,
	undoCapture,
	type Verified,
	verifyCapture,
} from './capture.ts';
export {checkCapture} from './check.ts';
export {
	awaitTrial,
	confirmPending,
	exists,
	type Pending,
	placesIn,
	type Rollback,
	readJson,
	rolledBack,
} from './confirm.ts';
export {describeEnded} from './ending.ts';
export {guardChange} from './guardian.ts';
export {Kernel} from './kernel.ts';
export {describeOlder, findOlder, readSockets} from './older.ts';
export {planBlock, planCapture} from './plan.ts';
export {probesFor} from './probes.ts';
export {runProgram} from './programs.ts';
export {describeRule, renderText} from './render-text.ts';
export type {Plan, Rule} from './rules.ts';
export {performStep, type StepRequest} from './step.ts';
export {probeThrough} from './through.ts';
export {watchCapture} from './watch.ts';
