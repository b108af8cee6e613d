export type {Backend, BackendName, LiveRules} from './backend.ts';
export {
	type Applied,
	applyCapture,
	type CaptureDeps,
	prepareCapture,
	type Removed,
	removeCapture,
	type Verified,
	verifyCapture,
} from './capture.ts';
export type {HostFacts as CaptureHostFacts} from './context.ts';
export {planBlock, planCapture} from './plan.ts';
export {runProgram} from './programs.ts';
export {describeRule, renderText} from './render-text.ts';
export type {Plan, Rule} from './rules.ts';
export {renderAs} from './select.ts';
